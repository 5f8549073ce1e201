// Keeps the page's parts fresh: fetches the same address with a header, replaces the parts that changed.
// Not needed to use any page. It never touches a part in which somebody is typing, and keeps the focus where it was.

const every_ms = 3000;
const lost_after_ms = 10000;
const stamp = document.querySelector("[data-live]");
let fresh_at = performance.now();
let busy = false;

function swap(text) {
  const next = new DOMParser().parseFromString(text, "text/html");
  for (const part of document.querySelectorAll("[data-part]")) {
    const other = next.querySelector(`[data-part="${CSS.escape(part.dataset.part)}"]`);
    if (!other || other.innerHTML === part.innerHTML) continue;
    const active = part.contains(document.activeElement) ? document.activeElement : null;
    if (active && active.matches("input, textarea, select")) continue;
    const href = active && active.getAttribute("href");
    part.replaceChildren(...other.childNodes);
    if (href) part.querySelector(`a[href="${CSS.escape(href)}"]`)?.focus({ preventScroll: true });
  }
  if (next.title) document.title = next.title;
}

async function refresh() {
  if (busy || document.hidden) return;
  busy = true;
  try {
    const answer = await fetch(location.href, {
      headers: { "Tocsin-Fragment": "parts" },
      signal: AbortSignal.timeout(lost_after_ms),
      cache: "no-store",
    });
    if (answer.redirected) location.assign(answer.url); // the session ended: the login page
    if (answer.ok) {
      swap(await answer.text());
      fresh_at = performance.now();
    }
  } catch {
    // Shown by tell(): the age grows until the next answer.
  } finally {
    busy = false;
  }
  tell();
}

function tell() {
  if (!stamp) return;
  const age_ms = performance.now() - fresh_at;
  stamp.dataset.live = age_ms > lost_after_ms ? "lost" : "fresh";
  for (const age of stamp.querySelectorAll("[data-age]")) age.textContent = String(Math.round(age_ms / 1000));
}

if (stamp && document.querySelector("[data-part]")) {
  stamp.hidden = false;
  setInterval(refresh, every_ms);
  setInterval(tell, 1000);
  document.addEventListener("visibilitychange", refresh);
}
