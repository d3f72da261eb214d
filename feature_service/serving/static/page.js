"use strict";

const PART = 8 << 20;
const $ = (id) => document.getElementById(id);

const TEXTS = {
  en: {
    language: "中文", title: "Emotions over time", recording: "Recording",
    transcript: "Transcript, if there is one", model: "Model", predict: "Predict",
    consent: "Everybody who is seen or heard in it knows what happens here, and agrees.",
    recordings: "Recordings", none: "None yet.", open: "Open", remove: "Delete", sent: "Sent",
    remove_of: (name) => `Delete ${name}`, progress: (done, of) => `${done} of ${of} utterances`,
    uploading: "being sent", queued: "waits", running: "begins", done: "done", failed: "failed",
    corrections: "Corrections",
    kept: "What was said instead of a prediction, and the numbers of words, voice and face of " +
      "those utterances. They stay when the recording goes, until they are deleted here.",
    lines: (count, last) => `${count} lines, the last ${last}`,
    use: "A prediction says what an expression looks like, not what somebody feels. It is no " +
      "ground for a decision about a person; at work and in education the European Union " +
      "forbids it, except for medical or safety reasons. Recordings and results are deleted " +
      "after their lifetime, or by you.",
  },
  zh: {
    language: "English", title: "情绪随时间的变化", recording: "录像或录音",
    transcript: "文字稿（如有）", model: "模型", predict: "预测",
    consent: "其中出现的每个人都知道这里的用途，并已同意。",
    recordings: "录像", none: "暂无。", open: "打开", remove: "删除", sent: "已发送",
    remove_of: (name) => `删除 ${name}`, progress: (done, of) => `${of} 条话语，已完成 ${done} 条`,
    uploading: "正在发送", queued: "等待中", running: "开始处理", done: "完成", failed: "失败",
    corrections: "更正",
    kept: "对预测所作的更正，以及相应话语的文字、声音、面部特征数值。录像删除后它们仍会保留，" +
      "直至在此删除。",
    lines: (count, last) => `${count} 条，最近一条 ${last}`,
    use: "预测说的是一段表达看起来像什么，而不是某人的感受，不得据以对人作决定；欧盟禁止在工作" +
      "场所和教育机构使用，医疗或安全原因除外。录像和结果到期后删除，您也可自行删除。",
  },
};
let language = navigator.language.startsWith("zh") ? "zh" : "en";

function say(name, ...values) {
  const text = TEXTS[language][name];
  return typeof text === "function" ? text(...values) : text;
}

function speak() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = say(node.dataset.t);
  $("bar").setAttribute("aria-label", say("sent"));
  $("language").textContent = say("language");
  $("language").lang = language === "zh" ? "en" : "zh-CN";
}

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
  $("predict").disabled = true;
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
  $("predict").disabled = false;
  $("bar").hidden = true;
  await show();
}

function element(tag, text, set = {}) {
  // As text, whatever a file is called.
  return Object.assign(document.createElement(tag), { textContent: text, ...set });
}

function line(name, told, path, page) {
  const row = element("li", "");
  row.append(element("span", name, { className: "name" }), element("span", told));
  if (page) row.append(element("a", say("open"), { href: page }));
  const remove = element("button", say("remove"), { type: "button" });
  remove.setAttribute("aria-label", say("remove_of", name));
  remove.onclick = () => ask("DELETE", path).then(show);
  row.append(remove);
  return row;
}

function job(one) {
  const { done, of } = one.progress ?? {};
  const told = one.error ?? (of ? say("progress", done, of) : say(one.state));
  const page = one.files.find((name) => name.endsWith("/index.html"));
  return line(one.name, told, `/v1/jobs/${one.id}`, page);
}

const correction = (one) =>
  line(one.recording, say("lines", one.lines, one.last), `/v1/corrections/${one.recording}`);

/** Fill the choice; a service that has just begun has none yet. */
async function models() {
  const all = await ask("GET", "/v1/models");
  $("model").replaceChildren(...all.map((m) => element("option", m.model)));
  $("predict").disabled = !all.length;
}

let shown = "";
async function show() {
  if (!$("model").options.length) await models();
  const [jobs, kept] = await Promise.all([ask("GET", "/v1/jobs"), ask("GET", "/v1/corrections")]);
  // Only what is new, or whoever stands on a button loses it.
  const now = JSON.stringify([jobs, kept, language]);
  if (now === shown) return;
  shown = now;
  $("jobs").replaceChildren(...jobs.map(job));
  $("none").hidden = jobs.length > 0;
  $("corrections").replaceChildren(...kept.map(correction));
  $("corrected").hidden = !kept.length;
}

async function start() {
  speak();
  $("language").onclick = () => {
    language = language === "zh" ? "en" : "zh";
    speak();
    return show();
  };
  $("form").onsubmit = predict;
  await show();
  setInterval(() => show().catch((problem) => ($("said").textContent = problem.message)), 2000);
}

start().catch((problem) => ($("said").textContent = problem.message));
