"use strict";

const PART = 8 << 20;
const $ = (id) => document.getElementById(id);

async function ask(method, path, body) {
  const json = body !== undefined && !(body instanceof Blob);
  const answer = await fetch(path, {
    method,
    body: json ? JSON.stringify(body) : body,
    headers: json ? { "content-type": "application/json" } : {},
  });
  const read = answer.status === 204 ? null : await answer.json();
  // 409 of a part says where the next one begins.
  if (!answer.ok && !(answer.status === 409 && read.received !== undefined)) {
    const detail = typeof read.detail === "string" ? read.detail : JSON.stringify(read.detail);
    throw new Error(`${answer.status}: ${detail}`);
  }
  return read;
}

async function send(file) {
  const upload = await ask("POST", "/v1/uploads", { name: file.name, size: file.size });
  let at = 0;
  while (at < file.size) {
    const path = `/v1/uploads/${upload.id}?offset=${at}`;
    at = (await ask("PUT", path, file.slice(at, at + PART))).received;
    $("bar").value = at / file.size;
  }
  return upload.id;
}

async function predict(event) {
  event.preventDefault();
  const [file] = $("file").files;
  const [words] = $("transcript").files;
  const button = event.target.querySelector("button");
  button.disabled = true;
  $("bar").hidden = false;
  try {
    const job = { upload: await send(file), model: $("model").value };
    if (words) {
      job.transcript = await words.text();
      job.transcript_format = words.name.split(".").pop();
    }
    await ask("POST", "/v1/jobs", job);
    $("said").textContent = "";
    event.target.reset();
  } catch (problem) {
    $("said").textContent = problem.message;
  }
  button.disabled = false;
  $("bar").hidden = true;
  await show();
}

function element(tag, text, set = {}) {
  // As text, whatever a file is called.
  return Object.assign(document.createElement(tag), { textContent: text, ...set });
}

function line(job) {
  const { done, of } = job.progress ?? {};
  const row = element("li", "");
  row.append(element("span", job.name, { className: "name" }));
  row.append(element("span", job.error ?? (of ? `${done} of ${of}` : job.state)));
  const page = job.files.find((name) => name.endsWith("/index.html"));
  if (page) row.append(element("a", "Open", { href: page }));
  const remove = element("button", "Delete", { type: "button" });
  remove.setAttribute("aria-label", `Delete ${job.name}`);
  remove.onclick = () => ask("DELETE", `/v1/jobs/${job.id}`).then(show);
  row.append(remove);
  return row;
}

let shown = "";
async function show() {
  const jobs = await ask("GET", "/v1/jobs");
  // Only what is new, or whoever stands on a button loses it.
  if (JSON.stringify(jobs) !== shown) $("jobs").replaceChildren(...jobs.map(line));
  shown = JSON.stringify(jobs);
}

async function start() {
  const models = await ask("GET", "/v1/models");
  $("model").replaceChildren(...models.map((m) => element("option", m.model)));
  $("form").onsubmit = predict;
  await show();
  setInterval(() => show().catch((problem) => ($("said").textContent = problem.message)), 2000);
}

start().catch((problem) => ($("said").textContent = problem.message));
