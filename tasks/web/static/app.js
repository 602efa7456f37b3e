// Orders certificates and follows them: a stream of events, and asking every two seconds where there is no stream.

const POLL = 2000; // milliseconds
const STREAM_AGAIN = 30000; // milliseconds until a stream that was refused is tried again

const form = document.getElementById("order");
const problem = document.getElementById("problem");
const announcement = document.getElementById("announcement");
const connection = document.getElementById("connection");
const list = document.getElementById("jobs");
const nothing = document.getElementById("nothing");
const template = document.getElementById("job");

const items = new Map(); // job id → its element
const shown = new Map(); // job id → the job as it was shown last
const awaited = new Set(); // jobs whose end is announced: those ordered here, and those that were not finished
let listed = false; // whether the list has been shown once

function hasEnded(job) {
  return job.status === "completed" || job.status === "failed";
}

function words(job) {
  if (job.status === "completed") return job.certificate ? `Ready · ${job.certificate.serial}` : "Ready";
  if (job.status === "failed") return `Failed: ${job.error ?? "no reason was given"}`;
  if (job.status === "processing") return job.progress ? `Processing in background… ${Math.round(job.progress.percent)} %` : "Processing in background…";
  if (job.error && job.attempts) return `Attempt ${job.attempts} of ${job.max_attempts} failed (${job.error}). It will be tried again.`;
  return "Processing in background… waiting for its turn";
}

function announce(text, kind) {
  announcement.className = `announcement ${kind}`;
  announcement.textContent = text;
}

function show(job) {
  let item = items.get(job.id);
  if (!item) {
    item = template.content.firstElementChild.cloneNode(true);
    item.id = `job-${job.id}`;
    items.set(job.id, item);
    list.prepend(item);
    nothing.hidden = true;
  }
  const ended = hasEnded(job);
  item.className = `job ${job.status}`;
  item.querySelector(".title bdi").textContent = job.title;
  item.querySelector(".state").textContent = words(job);
  const bar = item.querySelector("progress");
  bar.hidden = ended;
  bar.setAttribute("aria-label", `Progress of ${job.title}`);
  if (job.status === "processing" && job.progress) bar.value = job.progress.percent;
  else bar.removeAttribute("value");
  for (const [selector, link] of [[".open", job.links.file], [".check", job.links.verify]]) {
    const anchor = item.querySelector(selector);
    anchor.hidden = !link;
    if (link) anchor.href = link;
    anchor.setAttribute("aria-label", `${anchor.textContent}: ${job.title}`);
  }
  shown.set(job.id, job);
  if (!ended) awaited.add(job.id);
  else if (awaited.delete(job.id)) announceEnd(job);
}

function announceEnd(job) {
  if (job.status === "completed") announce(`${job.title}: the certificate is ready.`, "completed");
  else announce(`${job.title}: no certificate. ${job.error ?? ""}`, "failed");
}

function showAll(jobs) {
  for (const job of [...jobs].reverse()) show(job);
  if (!listed && !jobs.every(hasEnded)) announce("Processing in background…", "");
  listed = true;
}

// -- following ---------------------------------------------------------------------------------------------------------

let polling = null;
let tag = null;

async function poll() {
  try {
    const answer = await fetch("/api/jobs", { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
    if (answer.status === 401) return location.reload();
    if (answer.ok) {
      tag = answer.headers.get("ETag");
      showAll((await answer.json()).jobs);
    }
    connection.hidden = answer.ok || answer.status === 304;
  } catch {
    connection.hidden = false;
  }
  connection.textContent = "not connected, trying again…";
}

function startPolling() {
  if (polling) return;
  poll();
  polling = setInterval(poll, POLL);
}

function stopPolling() {
  clearInterval(polling);
  polling = null;
  connection.hidden = true;
}

function follow() {
  if (!("EventSource" in window)) return startPolling();
  const stream = new EventSource("/api/jobs/stream");
  stream.onopen = stopPolling;
  stream.addEventListener("jobs", (event) => showAll(JSON.parse(event.data)));
  stream.addEventListener("job", (event) => show(JSON.parse(event.data)));
  stream.onerror = () => {
    // While it tries again by itself, ask; where it has given up (refused, or something in between cannot stream), start anew later.
    startPolling();
    if (stream.readyState === EventSource.CLOSED) setTimeout(follow, STREAM_AGAIN);
  };
  window.addEventListener("pagehide", () => stream.close(), { once: true });
}

// -- ordering ----------------------------------------------------------------------------------------------------------

function complain(text, field) {
  problem.textContent = text;
  problem.hidden = !text;
  for (const input of form.querySelectorAll("input, select")) {
    if (text && input.name === field) {
      input.setAttribute("aria-invalid", "true");
      input.focus();
    } else input.removeAttribute("aria-invalid");
  }
}

form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = document.getElementById("generate");
  if (button.disabled) return;
  const order = Object.fromEntries([...new FormData(form)].filter(([name, value]) => value || name === "recipient_name"));
  button.disabled = true;
  complain("");
  try {
    const answer = await fetch("/api/certificates", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(order) });
    const said = await answer.json();
    if (answer.status !== 202) return complain(said.error?.message ?? "It could not be queued.", said.error?.field);
    // The worker may have been faster than this answer, and the stream have brought the job before it.
    if (!shown.has(said.job.id)) show(said.job);
    const job = shown.get(said.job.id);
    if (hasEnded(job)) announceEnd(job);
    else announce(said.message, "");
    form.recipient_name.value = "";
    if (form.recipient_key) form.recipient_key.value = "";
    form.recipient_name.focus();
  } catch {
    complain("The server does not answer. Nothing was queued, or you will see it in the list: look before you try again.");
  } finally {
    button.disabled = false;
  }
});

follow();
