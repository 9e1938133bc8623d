"""axe-core finds no violation on any page, light and dark, wide and narrow."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from visiting import PHONE, WIDE

from receiver.web.dashboard import blueprint

pytestmark = pytest.mark.slow

TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def paths(dashboard) -> dict[str, str]:
    """Every page, by the name of its view."""
    job = f"/jobs/{dashboard.showcase.story}"
    with dashboard.showcase.services.database.read() as session:
        run = session.connection().exec_driver_sql
        event = f"{run('SELECT n FROM events WHERE deliveries > 1').scalar():016x}"
        key = run("SELECT id FROM signature_keys WHERE instance = 'gooddata'").scalar()
        rejection = run("SELECT max(id) FROM rejections").scalar()
        alarm = run("SELECT max(id) FROM alarms WHERE cleared_at IS NULL").scalar()
        delivery = run("SELECT max(id) FROM outbound_deliveries").scalar()
        pending = run("SELECT id FROM jobs WHERE under_way LIMIT 1").scalar()
    return {
        "home": "/?period=30d",
        "jobs": "/jobs?outcome=partial&outcome=failed&updated_after=2026-01-01T00:00Z",
        "job": job,
        "job_errors": f"{job}/errors",
        "failed_rows": f"{job}/failed-rows",
        "event": f"/events/{event}",
        "events": "/events",
        "rejections": "/rejections",
        "rejection": f"/rejections/{rejection}",
        "alarms": "/alarms",
        "acknowledge_alarm": f"/alarms/{alarm}/acknowledge",
        "snooze_alarm": f"/alarms/{alarm}/snooze?duration=2h",
        "instances": "/instances",
        "instance": "/instances/hubspot-eu",
        "ask": f"{job}/ask",
        "close": f"/jobs/{pending}/close",
        "resend": "/instances/gooddata/resend",
        "test": "/instances/gooddata/test",
        "add_key": "/instances/gooddata/keys/add",
        "retire_key": f"/instances/gooddata/keys/{key}/retire",
        "verify_again": "/rejections/verify",
        "verify_one": f"/rejections/{rejection}/verify",
        "runbook": "/runbook",
        "schedules": "/schedules",
        "subscriptions": "/subscriptions",
        "subscription": "/subscriptions/crm",
        "test_subscription": "/subscriptions/crm/test",
        "switch_subscription": "/subscriptions/warehouse/switch",
        "retry_failed": "/subscriptions/crm/retry",
        "retry_one": f"/subscriptions/crm/deliveries/{delivery}/retry",
    }


OTHERS = (
    "/jobs?q=nothing",
    "/jobs/404",
    "/jobs?limit=0",
    "/rejections?reason=no_key",
    "/events?kind=other",
    "/nowhere",
)
NO_PAGES = {
    *("jobs_csv", "job_errors_csv", "event_body", "rejection_body"),
    *("sign_in", "sign_out", "static"),
}


def test_every_page_is_looked_at(dashboard, receiver):
    views = {
        rule.endpoint.removeprefix("dashboard.")
        for rule in receiver.app.url_map.iter_rules()
        if rule.endpoint.startswith(f"{blueprint.name}.")
    }
    assert views - NO_PAGES == set(paths(dashboard))


@pytest.mark.parametrize("screen", [WIDE, PHONE], ids=["wide", "phone"])
def test_axe_finds_nothing(dashboard, visit, screen):
    visitor = visit(dashboard, viewport=screen)
    found = {}
    visitor.open("/")
    found |= look("the door", visitor.page)
    visitor.sign_in()
    for path in (*paths(dashboard).values(), *OTHERS):
        page = visitor.open(path)
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        found |= look(path, page)
    visitor.faults[:] = [fault for fault in visitor.faults if "status of 40" not in fault]
    assert found == {}


def look(path, page) -> dict[tuple[str, str], list[str]]:
    """What axe finds on a page in each scheme; loading it and axe takes longer than a look."""
    page.evaluate(Axe().axe_script)
    options = {"runOnly": {"type": "tag", "values": TAGS}, "resultTypes": ["violations"]}
    found = {}
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        violations = page.evaluate("options => axe.run(options)", options)["violations"]
        if violations:
            found[path, scheme] = [
                f"{each['id']}: {[node['html'][:200] for node in each['nodes'][:3]]}"
                for each in violations
            ]
    return found
