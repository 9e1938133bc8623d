"""The dashboard in a real browser: what people see, press and wait for."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect
from visiting import PHONE, eventually

MINUTE = 60_000


def test_signing_in_looking_round_and_signing_out(dashboard, visit):
    visitor = visit(dashboard)
    page = visitor.open("/jobs?outcome=partial")
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    page.get_by_label("Token").fill(dashboard.read)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Jobs")
    expect(page).to_have_url(re.compile(r"/jobs\?outcome=partial$"))
    for name in ("Overview", "Events", "Rejected", "Instances"):
        page.get_by_role("navigation", name="Main").get_by_role("link", name=name).click()
        expect(page.get_by_role("link", name=name)).to_have_attribute("aria-current", "page")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    visitor.open("/jobs")
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")


def test_a_wrong_token_is_told_so_and_the_field_says_it(dashboard, visit):
    visitor = visit(dashboard)
    visitor.faults = []
    page = visitor.sign_in("rcv_wrong").page
    expect(page.get_by_role("alert")).to_contain_text("unknown, expired or revoked")
    expect(page.get_by_label("Token")).to_have_attribute("aria-invalid", "true")
    assert all("401" in fault for fault in visitor.faults)
    visitor.faults.clear()


def test_filters_are_set_by_pressing_and_taken_back_by_pressing(dashboard, visit):
    page = visit(dashboard).sign_in().open("/jobs?outcome=partial")
    expect(page.get_by_role("checkbox", name="partial")).to_be_checked()
    page.get_by_role("checkbox", name="failed").check(force=True)
    page.get_by_text("More filters").click()
    page.get_by_label("Instance").select_option("freshbooks")
    page.get_by_role("button", name="Apply").click()
    expect(page).to_have_url(re.compile("outcome=partial&outcome=failed.*instance=freshbooks"))
    page.wait_for_load_state()
    words = {badge.inner_text() for badge in page.locator("table .badge").all()}
    assert words == {"partial", "failed"}
    assert {cell.inner_text() for cell in page.locator(".c-instance").all()[1:]} == {"freshbooks"}
    page.get_by_role("link", name="Remove the filter outcome: failed").click()
    expect(page.get_by_role("checkbox", name="failed")).not_to_be_checked()
    page.get_by_role("searchbox", name="Id, file or object").fill("no such id")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="No job matches")).to_be_visible()
    page.get_by_role("link", name="Clear filters").first.click()
    expect(page).to_have_url(re.compile("/jobs$"))


def test_a_date_is_chosen_in_the_bar_and_means_utc(dashboard, visit):
    visitor = visit(dashboard, timezone_id="Asia/Kolkata").sign_in()
    page = visitor.open("/jobs?updated_after=2026-01-02T03:04:05Z")
    expect(page.get_by_label("Changed after")).to_have_value("2026-01-02T03:04")
    page.get_by_label("Changed after").fill("2031-01-02T03:04")
    page.get_by_role("button", name="Apply").click()
    expect(page.get_by_role("heading", name="No job matches")).to_be_visible()
    expect(page).to_have_url(re.compile("updated_after=2031-01-02T03%3A04"))


def test_the_page_of_a_job_tells_its_story(dashboard, visit):
    page = visit(dashboard).sign_in().open(f"/jobs/{dashboard.showcase.story}")
    expect(page.get_by_text("but 43 records failed")).to_be_visible()
    story = page.locator(".timeline li").all_inner_texts()
    assert [entry.split()[0] for entry in story] == ["Submission", *["Callback"] * 3]
    assert "3 deliveries" in story[2]
    assert "ignored: stale: the job was already COMPLETED" in story[3]
    expect(page.locator(".causes tbody tr")).to_have_count(3)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download", exact=True).nth(1).click()
    body = json.loads(download.value.path().read_bytes())
    assert body["callback-payload"] == {"run": "nightly-2026-47", "owner": "crm-team"}
    page.get_by_role("link", name="Body").nth(1).click()
    expect(page.locator("pre.body").first).to_contain_text('"recordsCount": 1157')


def test_an_id_is_copied(dashboard, visit):
    visitor = visit(dashboard, permissions=["clipboard-read", "clipboard-write"])
    page = visitor.sign_in().open("/jobs")
    wanted = page.locator(".c-job a").first.inner_text()
    page.get_by_role("button", name=f"Copy {wanted}").click()
    assert page.evaluate("navigator.clipboard.readText()") == wanted
    expect(page.locator("p[aria-live]")).to_have_text("Copied")


def test_the_list_follows_what_happens_keeps_the_focus_and_says_so(own_dashboard, visit):
    page = visit(own_dashboard).sign_in().open("/jobs?outcome=pending")
    page.clock.install()
    page.reload()
    job = page.locator("[data-key^=gooddata] .c-job a").last
    number = job.inner_text()
    job.focus()
    own_dashboard.showcase.call(
        own_dashboard.showcase.now, "gooddata", {"id": int(number), "status": "STARTED"}
    )
    own_dashboard.showcase.submit(own_dashboard.showcase.now, "freshbooks", 12)
    page.clock.run_for(6_000)
    expect(page.locator("[data-key^=freshbooks]")).to_have_count(1)
    expect(page.locator("p[aria-live]")).to_have_text("2 jobs changed")
    assert page.evaluate("document.activeElement.innerText") == number
    page.get_by_role("button", name="Pause updates").click()
    own_dashboard.showcase.submit(own_dashboard.showcase.now, "freshbooks", 13)
    page.clock.run_for(20_000)
    expect(page.locator("[data-key^=freshbooks]")).to_have_count(1)
    page.get_by_role("button", name="Resume updates").click()
    expect(page.locator("[data-key^=freshbooks]")).to_have_count(2)


def test_failed_records_are_a_table_by_cause_and_a_file(dashboard, visit):
    page = visit(dashboard).sign_in().open(f"/jobs/{dashboard.showcase.story}")
    first = page.locator(".causes tbody a").first
    count = int(first.inner_text().split()[0])
    first.click()
    expect(page.locator(".errors tbody tr")).to_have_count(count)
    page.get_by_role("link", name="Show all causes").click()
    expect(page.locator(".errors tbody tr")).to_have_count(43)
    assert page.locator(".errors th").all_inner_texts()[:2] == ["Row", "message"]
    with page.expect_download() as download:
        page.get_by_role("link", name="Download errors").click()
    assert len(download.value.path().read_text().splitlines()) == 44


def test_a_page_of_jobs_is_dense_and_light(dashboard, visit):
    visitor = visit(dashboard).sign_in()
    page = visitor.open("/jobs")
    expect(page.locator("tr[data-key]")).to_have_count(25)
    assert page.evaluate("document.documentElement.scrollHeight") <= 1400


def test_every_page_weighs_less_than_100_kilobytes(dashboard, visit):
    visitor = visit(dashboard).sign_in()
    job = f"/jobs/{dashboard.showcase.story}"
    pages = ("/?period=30d", "/jobs", job, f"{job}/errors", "/events", "/rejections", "/alarms")
    paths = ("/static/dashboard.css", "/static/dashboard.js", *pages, "/instances", "/runbook")
    sizes = {path: len(visitor.context.request.get(dashboard.url + path).body()) for path in paths}
    css, js, *sizes = sizes.values()
    assert css + js + max(sizes) < 100_000


def test_a_job_under_ones_eyes_changes_and_what_was_opened_stays_open(own_dashboard, visit):
    showcase = own_dashboard.showcase
    page = visit(own_dashboard).sign_in().page
    page.clock.install()
    page.goto(own_dashboard.url)
    table = page.locator("#fresh details", has_text="Show as a table")
    table.locator("summary").click()
    page.locator("#fresh details.what summary").first.click()
    before = page.locator("a.counter").first.inner_text()
    showcase.submit(showcase.now, "freshbooks", 12)
    page.clock.run_for(6_000)
    expect(page.locator("a.counter").first).not_to_have_text(before)
    assert table.get_attribute("open") is not None
    assert page.locator("#fresh details.what").first.get_attribute("open") is not None
    page.goto(f"{own_dashboard.url}/jobs/{showcase.story}")
    expect(page.locator(".timeline li")).to_have_count(4)
    showcase.call(showcase.now, "gooddata", {"id": int(showcase.story), "status": "CREATED"})
    page.clock.run_for(6_000)
    expect(page.locator(".timeline li")).to_have_count(5)


def test_nothing_is_asked_for_while_nobody_looks(dashboard, visit):
    visitor = visit(dashboard).sign_in()
    page = visitor.page
    page.clock.install()
    visitor.open("/jobs")
    asked = []
    page.on("request", lambda each: "/static/" in each.url or asked.append(each.url))
    hide = "Object.defineProperty(document, 'hidden', {get: () => %s, configurable: true});"
    changed = "document.dispatchEvent(new Event('visibilitychange'))"
    page.evaluate(hide % "true" + changed)
    page.clock.run_for(60_000)
    assert asked == []
    page.evaluate(hide % "false" + changed)
    eventually(lambda: page.evaluate("1") and asked)


def test_a_receiver_that_does_not_answer_is_told_of_and_nothing_is_lost_from_the_page(
    dashboard, visit
):
    visitor = visit(dashboard).sign_in()
    page = visitor.page
    page.clock.install()
    visitor.open("/jobs")
    shown = page.locator("tr[data-key]").count()
    visitor.context.set_offline(True)
    page.clock.run_for(6_000)
    expect(page.get_by_role("alert")).to_contain_text("The receiver does not answer")
    assert page.locator("tr[data-key]").count() == shown
    visitor.context.set_offline(False)
    visitor.faults.clear()  # the browser says that it was offline


@pytest.mark.slow
def test_numbers_on_the_overview_lead_to_what_they_count(dashboard, visit):
    visitor = visit(dashboard).sign_in()
    for name in ("In progress", "Partial", "Failed", "Cancelled", "expire within", "lost so far"):
        page = visitor.open("/?period=30d")
        counter = page.locator("a.counter, .also a").filter(has_text=name)
        told = int(re.search(r"\d+", counter.inner_text())[0])
        assert told > 0, name
        counter.click()
        visitor.open(page.url.removeprefix(dashboard.url) + "&limit=1000")
        assert page.locator("tr[data-key]").count() == told, name


def test_what_expires_soonest_stands_first(dashboard, visit):
    page = visit(dashboard).sign_in().open("/jobs?show=expiring&limit=2")
    seen = []
    for number in range(3):
        if number:
            page.get_by_role("link", name="More").click()
        seen += [
            int(time.get_attribute("data-left")) for time in page.locator(".c-files time").all()
        ]
        expect(page.locator("tr.day").first).to_contain_text("Files expire")
    assert len(seen) == 6
    assert seen == sorted(seen)
    page.get_by_role("link", name="Back", exact=True).click()
    first = page.locator(".c-files time").first
    expect(first).to_have_attribute("data-left", str(seen[2]))


def test_the_picture_of_outcomes_says_what_its_table_says(dashboard, visit):
    visitor = visit(dashboard).sign_in()
    page = visitor.open("/?period=30d")
    shapes = page.locator("svg.chart path").evaluate_all(
        "all => all.map(it => it.getAttribute('d'))"
    )
    assert sum(shape.count("M") for shape in shapes) > 20
    page.get_by_text("Show as a table").click()
    rows = [row.split() for row in page.locator(".scroll tbody tr").all_inner_texts()]
    assert len(rows) == 30
    failed = sum(int(row[-2]) for row in rows)
    counter = page.locator("a.counter").filter(has_text="Failed")
    assert failed == int(counter.locator(".value").inner_text())
    most = max(rows, key=lambda row: sum(map(int, row[-4:])))
    total = sum(map(int, most[-4:]))
    page.locator(".scroll").get_by_role("link", name=f"{most[0]} {most[1]}").click()
    expect(page.locator("tr[data-key]").first).to_be_visible()
    assert total > 1


@pytest.mark.slow
def test_everything_works_without_javascript(own_dashboard, visit):
    visitor = visit(own_dashboard, java_script_enabled=False).sign_in()
    page = visitor.page
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
    page.get_by_role("link", name="Partial").click()
    page.get_by_label("Id, file or object").fill(own_dashboard.showcase.story)
    page.get_by_role("button", name="Apply").click()
    page.locator(".c-job a").click()
    expect(page.locator(".timeline li")).to_have_count(4)
    expect(page.get_by_text(re.compile(r"^in 2 d"))).to_be_visible()
    expect(page.get_by_role("button", name="Copy")).to_have_count(0)
    page.get_by_role("link", name="Instances").click()
    page.get_by_role("link", name="hubspot-eu").click()
    page.get_by_role("link", name="Add a key").click()
    page.get_by_label("Secret").fill("a key that only the vendor knows yet")
    page.get_by_role("button", name="Add the key").click()
    expect(page.get_by_role("status")).to_contain_text("is accepted from now on")
    page.get_by_role("link", name="Rejected").click()
    page.get_by_role("link", name="Verify again").click()
    page.get_by_role("button", name="Verify again").click()
    expect(page.get_by_role("status")).to_have_text(re.compile("3 of 6 were verified"))
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")


def test_a_phone_shows_all_of_it_without_scrolling_sideways(dashboard, visit):
    visitor = visit(dashboard, viewport=PHONE, has_touch=True, is_mobile=True).sign_in()
    job = f"/jobs/{dashboard.showcase.story}"
    for path in ("/", "/jobs", job, "/rejections", "/instances", "/events", "/runbook"):
        page = visitor.open(path)
        assert visitor.overflow <= 0, path
        expect(page.get_by_role("button", name="Sign out")).to_be_in_viewport()
        for link in page.get_by_role("navigation", name="Main").get_by_role("link").all():
            expect(link).to_be_in_viewport()


def test_the_keyboard_reaches_everything_in_the_order_of_the_page(dashboard, visit):
    page = visit(dashboard).sign_in().open("/jobs")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null")
    seen = []
    for _ in range(14):
        seen.append(
            page.evaluate("document.activeElement.innerText || document.activeElement.name")
        )
        outline = page.evaluate(
            "(e => getComputedStyle(e.type === 'checkbox' ? e.nextElementSibling : e).outlineStyle)"
            "(document.activeElement)"
        )
        assert outline != "none", seen
        page.keyboard.press("Tab")
    assert seen[0].startswith("Runbook: ")
    assert seen[1:4] == ["Pause updates", "Export CSV", "q"]
    assert seen[4:11] == ["outcome"] * 7
    assert seen[11:13] == ["Apply", "More filters"]


def test_failed_rows_come_out_of_a_file_that_a_person_chooses(dashboard, visit, tmp_path):
    rows = [f"{n},{'somebody' * 150}\n" for n in range(1, 1_201)]  # more than other forms may hold
    file = tmp_path / "contacts.csv"
    file.write_text("".join(("id,name\n", *rows)))
    page = visit(dashboard).sign_in(dashboard.read).open(f"/jobs/{dashboard.showcase.story}")
    page.get_by_role("link", name="Download failed rows (CSV)").click()
    page.get_by_label("The uploaded file").set_input_files(file)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download failed rows").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert (lines[0], len(lines)) == ("id,name", 44)
