// What makes pages more convenient; each of them is complete without it.
"use strict";

(() => {
  const PAUSE_MS = 5000;
  const GONE = "The receiver does not answer";
  const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

  function span(seconds) {
    seconds = Math.max(0, Math.floor(seconds));
    for (let place = 0; place < UNITS.length; place += 1) {
      const [unit, length] = UNITS[place];
      const [smaller, smallerLength] = UNITS[place + 1] ?? [];
      if (seconds < length) continue;
      const rest = smaller && smaller !== "s" ? Math.floor((seconds % length) / smallerLength) : 0;
      return `${Math.floor(seconds / length)} ${unit}${rest ? ` ${rest} ${smaller}` : ""}`;
    }
    return "0 s";
  }

  // Times go on counting, and tell the reader's own zone.
  function tick() {
    const now = Date.now();
    for (const time of document.querySelectorAll("time[data-ago], time[data-left]")) {
      const { ago, left } = time.dataset;
      const text = ago ? (now - ago < 1000 ? "just now" : `${span((now - ago) / 1000)} ago`)
        : left > now ? `in ${span((left - now) / 1000)}` : "over";
      if (time.textContent !== text) time.textContent = text;
    }
  }

  function prepare(root) {
    for (const time of root.querySelectorAll("time[datetime]")) {
      time.title += `\n${new Date(time.dateTime).toLocaleString()} here`;
    }
    if (!navigator.clipboard) return;
    for (const button of root.querySelectorAll("button[data-copy]")) {
      button.hidden = false;
    }
  }

  document.addEventListener("click", async (click) => {
    const button = click.target.closest("button[data-copy]");
    if (!button) return;
    await navigator.clipboard.writeText(button.dataset.copy);
    button.classList.add("done");
    say("Copied");
    setTimeout(() => button.classList.remove("done"), 1500);
  });

  // For screen readers, once there is something to say.
  const voice = document.createElement("p");
  voice.className = "unseen";
  voice.setAttribute("aria-live", "polite");
  document.body.append(voice);
  function say(text) { voice.textContent = text; }

  // The same page again, every few seconds, while somebody looks at it.
  const live = document.getElementById("live");
  const gone = document.getElementById("gone");
  let wanted = sessionStorage.getItem("live") !== "off";
  let timer = 0;

  function show(text) {
    live.firstChild.textContent = text;
  }

  function plan() {
    clearTimeout(timer);
    if (wanted && !document.hidden) timer = setTimeout(refresh, PAUSE_MS);
  }

  // Whoever is about to copy something must not lose what they selected.
  function busy() {
    const selected = getSelection();
    return !selected.isCollapsed && document.getElementById("fresh").contains(selected.anchorNode);
  }

  async function refresh() {
    if (busy()) return plan();
    show("Looking for changes…");
    try {
      const answer = await fetch(location.href, { credentials: "same-origin", cache: "no-store" });
      if (answer.redirected || answer.status === 401) return location.reload();
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (!answer.ok) throw new Error(page.querySelector("h1")?.textContent ?? GONE);
      swap(page);
      document.getElementById("banners").replaceChildren(...page.getElementById("banners").childNodes);
      gone.hidden = true;
      show("Live");
    } catch (error) {
      show("Not live");
      gone.querySelector("strong").textContent = error instanceof TypeError ? GONE : error.message;
      gone.hidden = false;
    }
    plan();
  }

  // A page that does not follow what happens says so, too.
  async function check() {
    if (document.hidden) return;
    const answer = await fetch("/readyz", { cache: "no-store" }).catch(() => null);
    gone.querySelector("strong").textContent = answer ? "The receiver is not ready" : GONE;
    gone.hidden = Boolean(answer?.ok);
  }

  function swap(page) {
    const [old, fresh] = [document.getElementById("fresh"), page.getElementById("fresh")];
    if (!fresh || plain(old) === plain(fresh)) return;
    const known = new Map([...old.querySelectorAll("tr[data-key]")].map((row) => [row.dataset.key, row.dataset.revision]));
    const focused = document.activeElement && old.contains(document.activeElement) ? document.activeElement : null;
    const place = focused && [focused.closest("[data-key]")?.dataset.key, focused.className, focused.getAttribute("href")];
    const open = new Map([...old.querySelectorAll("details")].map((each) => [title(each), each.open]));
    for (const each of fresh.querySelectorAll("details")) {
      each.open = open.get(title(each)) ?? each.open;
    }
    old.replaceChildren(...fresh.childNodes);
    prepare(old);
    let changed = 0;
    for (const row of old.querySelectorAll("tr[data-key]")) {
      if (known.get(row.dataset.key) !== row.dataset.revision) {
        row.classList.add("changed");
        changed += 1;
      }
    }
    if (place) {
      const [key, name, href] = place;
      const within = key === undefined ? old : [...old.querySelectorAll("[data-key]")].find((row) => row.dataset.key === key);
      const same = [...(within ?? old).querySelectorAll("a, button, summary, [tabindex]")]
        .find((each) => each.className === name && each.getAttribute("href") === href);
      (same ?? document.getElementById("main")).focus({ preventScroll: true });
    }
    say(changed ? `${changed} ${changed === 1 ? "job" : "jobs"} changed` : "The page was updated");
  }

  function title(details) { return details.id || details.querySelector("summary").textContent.trim(); }

  // The server's words for times differ from one second to the next, and mean no change.
  function plain(root) {
    const copy = document.importNode(root, true);
    for (const time of copy.querySelectorAll("time")) time.replaceWith(time.dateTime);
    for (const button of copy.querySelectorAll("button[data-copy]")) button.remove();
    return copy.textContent.replace(/\s+/g, " ");
  }

  if (live) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet";
    const label = () => { button.textContent = wanted ? "Pause updates" : "Resume updates"; };
    button.addEventListener("click", () => {
      wanted = !wanted;
      sessionStorage.setItem("live", wanted ? "on" : "off");
      show(wanted ? "Live" : "Paused");
      label();
      wanted ? refresh() : plan();
    });
    live.append(document.createElement("span"), button);
    live.hidden = false;
    show(wanted ? "Live" : "Paused");
    label();
    document.addEventListener("visibilitychange", () => (document.hidden ? plan() : wanted && refresh()));
    plan();
  }

  if (gone && !live) setInterval(check, 3 * PAUSE_MS);

  prepare(document);
  tick();
  setInterval(tick, 1000);
})();
