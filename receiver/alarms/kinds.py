"""The table of conditions: what each kind is called and means, how severe it is, what to do.

All who show or send an alarm take its words from here: messages, pages, API and command line.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

RUNBOOK = "docs/runbook.md"

Severity: TypeAlias = Literal["critical", "warning"]


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kind of condition is called and means.

    title, resolved -- while it is there, and once it is over. action -- what to do, with the next
    command: about 55 characters, for one line of the overview; more -- what comes after that.
    runbook -- an entry of docs/runbook.md, which names the alarm. page -- of the dashboard. In
    these, `{}` stands for the subject. severity -- `critical`: act now, or something is lost for
    good; `warning`: it can wait until the morning. examples -- what its examples are the ids of:
    jobs, events or nodes. of_instance -- whether its subject is an instance.
    """

    title: str
    resolved: str
    meaning: str
    action: str
    runbook: str
    page: str
    severity: Severity = "warning"
    examples: str = "jobs"
    of_instance: bool = True
    more: str = ""

    def advice(self, subject: str) -> str:
        """Return all that is to be done about a subject."""
        return self.fill(f"{self.action} {self.more}".strip(), subject)

    @staticmethod
    def fill(text: str, subject: str) -> str:
        """Write the subject into a text; '' if it is not known which."""
        return text.replace("{}", subject or "NAME")

    @property
    def link(self) -> str:
        """Where the runbook says more; '' for a kind that is not of this release."""
        return f"{RUNBOOK}#{self.runbook}" if self.runbook else ""


KINDS: Mapping[str, Kind] = {
    "silent": Kind(
        title="no callbacks are coming in",
        resolved="a callback came in, or no job is in progress",
        meaning="Jobs are in progress, but for far longer than usual no callback has come. If the"
        " vendor's tries fail, it gives up after some hours.",
        action="Test the way in: `receiver trigger --instance {}`.",
        more="Get the outcomes with `receiver reconcile --all`.",
        severity="critical",
        runbook="callbacks-stopped",
        page="/instances/{}",
    ),
    "overdue": Kind(
        title="jobs are overdue",
        resolved="no job is overdue",
        meaning="Jobs are in progress for longer than jobs of their kind usually take. Nothing is"
        " lost by waiting.",
        action="Ask the vendor about them: `receiver reconcile`.",
        more="One that is still in progress afterwards is slow at the vendor, or hangs there.",
        runbook="callbacks-stopped",
        page="/jobs?show=overdue&instance={}",
    ),
    "rejected": Kind(
        title="signatures are wrong",
        resolved="signatures are right again, or none was wrong for an hour",
        meaning="Callbacks are rejected because no key of the instance made their signature: either"
        " it was changed at the vendor, which stops retrying after some hours, or a stranger sends"
        " them.",
        action="See who sent what: `receiver rejections --instance {}`.",
        more="If the key was changed at the vendor: `receiver keys add {} --file FILE`, then"
        " `receiver rejections --instance {} --verify-again` takes what was rejected.",
        severity="critical",
        runbook="callbacks-stopped",
        page="/rejections?instance={}",
    ),
    "unreadable": Kind(
        title="an event cannot be read",
        resolved="no unreadable event came for an hour",
        meaning="A callback with a right signature does not say which job it is about. It is kept.",
        action="See why: `receiver events --kind unreadable`.",
        more="Then find its job in the vendor's list.",
        runbook="an-event-cannot-be-read",
        page="/events?kind=unreadable",
        examples="events",
    ),
    "failing": Kind(
        title="callbacks are not accepted",
        resolved="callbacks are accepted again",
        meaning="Callbacks are answered with errors. Nothing is lost while the vendor retries;"
        " after some hours it stops.",
        action="Run `receiver doctor` on every node.",
        severity="critical",
        runbook="the-database-is-down",
        page="/instances",
        examples="nodes",
        of_instance=False,
    ),
    "queued": Kind(
        title="the vendor holds callbacks back",
        resolved="the vendor holds nothing back",
        meaning="The vendor has deactivated the callback URL and queues what it would have sent.",
        action="Activate the URL there, then `receiver reconcile --redeliver`.",
        more="First see why callbacks failed: `receiver doctor`.",
        severity="critical",
        runbook="the-vendor-deactivated-us",
        page="/instances/{}",
    ),
    "expiring": Kind(
        title="files expire before they are downloaded",
        resolved="the files were downloaded, or have expired",
        meaning="The vendor deletes the files of finished downloads within a day; after that nobody"
        " can have them.",
        action="Save them now: `receiver reconcile --fetch-results DIR`.",
        severity="critical",
        runbook="files-expire",
        page="/jobs?show=expiring&instance={}",
    ),
    "failed": Kind(
        title="jobs failed or lost records",
        resolved="no job failed for an hour",
        meaning="Jobs ended with an error, or did not load all of their records. The errors are"
        " kept.",
        action="See the causes: `receiver job ID --errors`.",
        more="Correct the rows, then `receiver submit --retry-failed ID --upload FILE`.",
        runbook="jobs-failed",
        page="/jobs?outcome=failed&outcome=partial&instance={}",
    ),
    "clock": Kind(
        title="a clock jumped by over a day",
        resolved="the clock is steady",
        meaning="A clock is wrong, or no node ran for so long; nothing old is deleted meanwhile.",
        action="Compare `date --utc` on every node, and set the wrong one.",
        runbook="a-clock-jumped",
        page="/instances",
        examples="nodes",
        of_instance=False,
    ),
    "lost": Kind(
        title="callbacks were lost",
        resolved="no callback was lost for an hour",
        meaning="Jobs ended, and no callback came of it. The receiver asked the vendor instead, so"
        " the outcomes are right, but late.",
        action="Test the way in: `receiver trigger --instance {}`.",
        more="Then compare the callback URL at the vendor with the one on the instance's page.",
        runbook="callbacks-stopped",
        page="/jobs?show=lost&instance={}",
    ),
    "vendor": Kind(
        title="the vendor does not answer",
        resolved="the vendor answers again",
        meaning="Requests to the vendor fail: nothing can be uploaded, and outcomes are not polled."
        " The vendor may be down, or the way to it from here.",
        action="Ask it again: `receiver objects --instance {}`.",
        more="Once it answers, `receiver reconcile --all`. If it answers 401 or 403, give the"
        " instance the new secrets: `receiver instances set {} --user-secret-file FILE`.",
        severity="critical",
        runbook="the-vendor-does-not-answer",
        page="/instances/{}",
        examples="",
    ),
    "undeliverable": Kind(
        title="deliveries to a subscription fail",
        resolved="deliveries are accepted again, or the subscription was removed",
        meaning="Its endpoint does not accept what is sent to it. Nothing is lost: each delivery is"
        " tried again for a day, and can be sent again after that. After five days, or when the"
        " endpoint answers 410, the subscription is disabled.",
        action="See why: `receiver deliveries --subscription {}`.",
        more="Once the endpoint works, `receiver subscriptions test {}` is accepted. If the"
        " subscription is disabled, then `receiver subscriptions enable {}`; what failed is sent"
        " again by `receiver deliveries retry --failed --subscription {}`.",
        runbook="deliveries-failing",
        page="/subscriptions/{}",
        examples="",
        of_instance=False,
    ),
    "schedule_missed": Kind(
        title="an expected job did not start",
        resolved="a job started, or the schedule was removed",
        meaning="A job was due by its schedule, and none started within the start grace.",
        action="See what it waits for: `receiver schedules show {}`.",
        more="Find out at the system that starts the load why it did not, and run it now if its"
        " data is needed.",
        runbook="an-expected-job-did-not-start",
        page="/schedules#{}",
        examples="",
        of_instance=False,
    ),
    "schedule_late": Kind(
        title="an expected job did not end in time",
        resolved="the job ended, or the schedule was removed",
        meaning="A job started by its schedule, and has not ended within the run grace.",
        action="Ask the vendor about it: `receiver reconcile`.",
        more="See what was said of the job with `receiver job ID --timeline`.",
        runbook="an-expected-job-did-not-end-in-time",
        page="/schedules#{}",
        of_instance=False,
    ),
    "schedule_broken": Kind(
        title="a schedule cannot be judged",
        resolved="the schedule is judged again, or was removed",
        meaning="Its time zone or cron expression is not known any more, so that it is not seen"
        " whether its jobs start. Other schedules are judged.",
        action="See which zone: `receiver schedules show {}`.",
        more="Restore it by the package tzdata on every node, or remove the schedule and add it"
        " with another zone.",
        runbook="a-schedule-cannot-be-judged",
        page="/schedules#{}",
        examples="",
        of_instance=False,
    ),
}


def kind_of(name: str) -> Kind:
    """Return a kind by its name; one that is not of this release has no more than that."""
    unknown = Kind(name, name, "", "", runbook="", page="/alarms", examples="")
    return KINDS.get(name, unknown)


def instance_of(kind: str, subject: str) -> str:
    """Return the instance that a subject is; '' if it is none."""
    return subject if kind_of(kind).of_instance else ""
