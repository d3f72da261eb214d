"use strict";
// What both pages share: their data, two languages, and how an emotion looks.

const data = JSON.parse(document.getElementById("data").textContent);
const HEADS = ["text", "audio", "vision", "multimodal"];

const TEXTS = {
  en: {
    language: "中文",
    text: "Words", audio: "Voice", vision: "Face", multimodal: "All together",
    warning: "Estimates of how an expression is perceived, not of what a person feels. " +
      "Not for decisions about people.",
    more: "What this can and cannot say",
    about: "About these results",
    keys: "Keys", close: "Close", space: "space",
    key_play: "play, pause", key_seek: "5 s back, on",
    key_differ: "next, previous disagreement", key_zoom: "a shorter, longer stretch",
    key_help: "these keys",
    player: "Player", timeline: "Timeline", utterance: "Utterance", utterances: "Utterances",
    coherence: "What goes with what", strip: "Faces over the stretch shown",
    play: "Play", pause: "Pause",
    previous: "◀ Disagreement", next: "Disagreement ▶",
    zoom_in: "Shorter stretch", zoom_out: "Longer stretch",
    reading: "Stronger colour: higher probability. Dashed, ?: below the limit for an answer. " +
      "Bars: disagreement; ▼ words, voice and face name different emotions.",
    export: "Save as",
    apart: "Disagreement", short_apart: "Differ", short_multimodal: "All",
    emotion: "Emotion", answer: "Answer",
    yours: "Your label", yours_of: (head) => `Your label, ${head}`, who: "Your name",
    save_corrections: "Save corrections",
    judge_blind: "Judge without the answers", look: "Show the answers",
    sent: "kept", unsaved: (n) => `${n} not saved yet`, not_kept: (why) => `not kept: ${why}`,
    kept_here: "Say what you see or hear instead, or the same: both teach the model. Save the " +
      "corrections beside this page; docs/recordings.md tells how to train on them.",
    kept_there: "Say what you see or hear instead, or the same: both teach the model. With a " +
      "label are kept its utterance's numbers of words, voice and face, for longer than the " +
      "recording, until you delete them on the first page.",
    none: "none", uncalibrated: "* not calibrated: a probability is not how often it is right",
    nothing: "Nothing is said at this time.",
    empty: "The recording has no utterances.",
    nobody: "no answer in this recording",
    kind_speech: "speech", kind_gap: "no speech", kind_listener: "listener",
    silent: "(no speech)", listening: "(listening)", wordless: "(no transcript)",
    source_recognised: "text recognised by machine",
    source_transcript: "text from the transcript",
    face_number: (n) => `face ${n}`,
    error: "Error",
    disagreement: (value) => `disagreement ${value}`,
    no_media: "The recording is not here; the clock runs without it.",
    no_video: "This browser cannot play the recording, or it was moved; " +
      "the clock runs without it.",
    no_picture: "This browser plays the sound, but cannot show the picture.",
    pair: "Compare", uncertain: "count uncertain answers too",
    pairs_none: "Two of words, voice and face are needed; this recording has fewer.",
    left_out: (n, of) => `${n} of ${of} utterances with both are left out: one is uncertain.`,
    cell: (n, a, b) => `${n} × ${a}, ${b}`,
    matrix: (a, b) => `Down: ${a}. Across: ${b}. Numbers: utterances.`,
    at: (where, total) => `${where} of ${total}`,
    recordings: "Recordings",
    overview_note: "Most disagreement first: the mean over the utterances for which two of " +
      "words, voice and face answer. Bars: share of time by emotion, of all together or of the " +
      "first that answers.",
    no_disagreement: "no disagreement to tell",
    failed: (n) => `${n} failed`,
    count: (n) => (n === 1 ? "1 utterance" : `${n} utterances`),
    no_recordings: "There are no recordings.",
  },
  zh: {
    language: "English",
    text: "文字", audio: "声音", vision: "面部", multimodal: "综合",
    warning: "所示为对表达给人观感的估计，并非当事人的感受。不得用于对人作决定。",
    more: "能说明什么，不能说明什么",
    about: "关于本结果",
    keys: "快捷键", close: "关闭", space: "空格",
    key_play: "播放、暂停", key_seek: "后退、前进 5 秒",
    key_differ: "下一处、上一处分歧", key_zoom: "缩短、加长所示时段",
    key_help: "快捷键说明",
    player: "播放器", timeline: "时间轴", utterance: "话语", utterances: "话语列表",
    coherence: "彼此的对应", strip: "所示时段内的面部",
    play: "播放", pause: "暂停",
    previous: "◀ 分歧", next: "分歧 ▶",
    zoom_in: "缩短时段", zoom_out: "加长时段",
    reading: "颜色越浓，概率越高。虚线与“?”：低于作答下限。" +
      "柱：分歧程度；▼ 文字、声音、面部给出不同情绪。",
    export: "另存为",
    apart: "分歧", short_apart: "分歧", short_multimodal: "综合",
    emotion: "情绪", answer: "回答",
    yours: "您的标签", yours_of: (head) => `您的标签：${head}`, who: "您的姓名",
    save_corrections: "保存更正",
    judge_blind: "不看回答来判断", look: "显示回答",
    sent: "已保存", unsaved: (n) => `${n} 条尚未保存`, not_kept: (why) => `未保存：${why}`,
    kept_here: "请给出您看到或听到的情绪，与回答相同亦可：两者都能用于训练。" +
      "将更正保存在本页旁边；训练方法见 docs/recordings.md。",
    kept_there: "请给出您看到或听到的情绪，与回答相同亦可：两者都能用于训练。" +
      "标签将连同该话语的文字、声音、面部特征数值一起保存，保存期长于录像，直至您在首页删除。",
    none: "无", uncalibrated: "* 未校准：概率不等于答对的频率",
    nothing: "此刻无内容。",
    empty: "该录像没有话语。",
    nobody: "此录像中无回答",
    kind_speech: "讲话", kind_gap: "无讲话", kind_listener: "听者",
    silent: "（无讲话）", listening: "（在听）", wordless: "（无文字稿）",
    source_recognised: "文字由机器识别",
    source_transcript: "文字来自文字稿",
    face_number: (n) => `面部 ${n}`,
    error: "错误",
    disagreement: (value) => `分歧 ${value}`,
    no_media: "此处没有录像；时钟照常运行。",
    no_video: "浏览器无法播放该录像，或录像已被移动；时钟照常运行。",
    no_picture: "浏览器能播放声音，但无法显示画面。",
    pair: "比较", uncertain: "计入不确定的回答",
    pairs_none: "需要文字、声音、面部中的两项；此录像不足。",
    left_out: (n, of) => `两项均有回答的 ${of} 条话语中，${n} 条因其一不确定而未计入。`,
    cell: (n, a, b) => `${n} × ${a}、${b}`,
    matrix: (a, b) => `行：${a}。列：${b}。数字：话语条数。`,
    at: (where, total) => `${where}，共 ${total}`,
    recordings: "录像",
    overview_note: "按分歧从大到小：文字、声音、面部中至少两项有回答的话语之平均值。" +
      "条形：各情绪所占时间，依据综合或首个有回答的一项。",
    no_disagreement: "无从判断分歧",
    failed: (n) => `${n} 条失败`,
    count: (n) => `${n} 条话语`,
    no_recordings: "没有录像。",
  },
};
let language = navigator.language.startsWith("zh") ? "zh" : "en";

/** The text of that name in the reader's language; a function's result with `values`. */
function say(name, ...values) {
  const text = TEXTS[language][name];
  return typeof text === "function" ? text(...values) : text;
}

/** Label the page anew; `draw` draws what is not marked with data-t. */
function speak(draw) {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = say(node.dataset.t);
  for (const node of document.querySelectorAll("[data-t-label]"))
    node.setAttribute("aria-label", say(node.dataset.tLabel));
  const button = document.getElementById("language");
  button.textContent = say("language");
  button.lang = language === "zh" ? "en" : "zh-CN";
  draw();
}

function start(draw) {
  document.getElementById("language").addEventListener("click", () => {
    language = language === "zh" ? "en" : "zh";
    speak(draw);
  });
  // Colours are mixed with the background's.
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  speak(draw);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false)
      node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}
const html = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function clock(seconds) {
  const whole = Math.floor(seconds), two = (n) => String(n).padStart(2, "0");
  const minutes = Math.floor(whole / 60) % 60, hours = Math.floor(whole / 3600);
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}
const percent = (p) => `${Math.round(100 * p)}%`;

// Okabe and Ito's colours, which colour-blind people tell apart, and grey for no emotion.
const GREY = "#999999";
const COLOURS = [
  "#d55e00", "#009e73", "#cc79a7", "#f0e442", "#0072b2", "#56b4e9", "#e69f00",
];
// The same emotion looks the same whatever a corpus calls it.
const KNOWN = [
  [/^ang/, 0, "愤怒"], [/^disgust/, 1, "厌恶"], [/^fear/, 2, "恐惧"],
  [/^(happ|joy)/, 3, "高兴"], [/^sad/, 4, "悲伤"], [/^surpris/, 5, "惊讶"],
  [/^neutral/, -1, "中性"], [/^calm/, 1, "平静"], [/^excite/, 6, "兴奋"],
  [/^frustrat/, 6, "沮丧"], [/^worr/, 6, "担忧"], [/^contempt/, 6, "轻蔑"],
  [/^negative/, 0, "消极"], [/^positive/, 3, "积极"],
];
const PATTERNS = [
  "", "M0 8L8 0M-2 2L2 -2M6 10L10 6", "M0 4H8", "M4 0V8", "M0 0L8 8M0 8L8 0", "M2 3h3v2h-3z",
  "M0 0L8 8M-2 6L2 10M6 -2L10 2", "M0 4H8M4 0V8",
];

/** Class -> {colour, pattern, name, letter}. No two share both colour and pattern. */
function looksOf(classes) {
  const taken = new Set(), looks = new Map();
  const known = (c) => KNOWN.find(([pattern]) => pattern.test(c.toLowerCase()));
  // First those whose colour is fixed, so that others do not take it.
  for (const c of [...classes].sort((a, b) => !known(a) - !known(b))) {
    let colour = known(c)?.[1] ?? COLOURS.findIndex((_, k) => !taken.has(`${k} 0`));
    if (colour === -1 && !known(c)) colour = taken.size % COLOURS.length;
    let pattern = 0;
    while (taken.has(`${colour} ${pattern}`)) pattern++;
    taken.add(`${colour} ${pattern}`);
    looks.set(c, {
      colour: COLOURS[colour] ?? GREY,
      // Faint colours look alike; their patterns do not.
      pattern: (colour + 1 + pattern) % PATTERNS.length,
      english: c,
      chinese: known(c)?.[2] ?? c,
    });
  }
  for (const which of ["english", "chinese"]) {
    const names = classes.map((c) => looks.get(c)[which].toLowerCase()), used = new Set();
    names.forEach((name, k) => {
      const alone = (begin) => !names.some((other, o) => o !== k && other.startsWith(begin));
      // The beginning that no other has, else the first letter with a later one.
      const later = [...name].slice(1).map((letter) => name[0] + letter);
      const letter = [name.slice(0, 1), name.slice(0, 2)].find(alone) ??
        later.find((two) => !used.has(two) && alone(two)) ?? `${name[0]}${k + 1}`;
      used.add(letter);
      looks.get(classes[k])[`${which}Letter`] = letter[0].toUpperCase() + letter.slice(1);
    });
  }
  return looks;
}
const nameOf = (look) => (language === "zh" ? look.chinese : look.english);
const letterOf = (look) => (language === "zh" ? look.chineseLetter : look.englishLetter);

const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
const variable = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** The colour laid over the lane with that opacity, and the letter's, black or white. */
function shade(colour, opacity) {
  const over = channels(colour), under = channels(variable("--lane"));
  const mixed = over.map((v, k) => Math.round(opacity * v + (1 - opacity) * under[k]));
  const linear = mixed.map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  const luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  return { fill: `rgb(${mixed})`, ink: luminance > 0.179 ? "#000000" : "#ffffff" };
}

/** Opacity by confidence: from no better than chance to certain. */
const opacityOf = (p, count) =>
  0.25 + 0.75 * Math.max(0, Math.min(1, (p - 1 / count) / (1 - 1 / count)));

/** A stretch of an emotion as SVG: its colour with its letter, or where there is no room for one
 * with its pattern. */
function mark(look, opacity, abstains, x, y, width, height, title = "") {
  const { fill: colour, ink } = shade(look.colour, opacity);
  const place = { x, y, width, height, rx: Math.min(3, width / 3) };
  const letter = letterOf(look) + (abstains ? "?" : "");
  const needs = [...letter].reduce((sum, c) => sum + (c > "\u2e80" ? 13 : 8), 0);
  const fits = needs <= width && height >= 13;
  const dashed = {
    ...place, x: x + 0.75, y: y + 0.75, width: Math.max(0, width - 1.5), height: height - 1.5,
    fill: "none", stroke: variable("--ink"), "stroke-dasharray": "3 2", "stroke-width": 1.5,
  };
  const text = svg("text", { class: "letter", x: x + width / 2, y: y + height / 2 + 4 }, letter);
  text.style.fill = ink;
  return svg(
    "g", {},
    title ? svg("title", {}, title) : null,
    svg("rect", { ...place, fill: colour }),
    fits
      ? text
      : svg("rect", { ...place, fill: `url(#pattern-${look.pattern})` }),
    abstains && width > 3 ? svg("rect", dashed) : null,
  );
}

function patterns() {
  return svg(
    "svg", { width: 0, height: 0, class: "spoken", "aria-hidden": "true" },
    svg("defs", {}, ...PATTERNS.map((d, k) =>
      svg("pattern", { id: `pattern-${k}`, width: 8, height: 8, patternUnits: "userSpaceOnUse" },
        svg("path", { class: "pattern", d, "stroke-width": 1.2 })))),
  );
}

function swatch(look, opacity = 1, abstains = false, width = 20, height = 18) {
  return svg("svg", { class: "swatch", width, height, "aria-hidden": "true" },
    mark(look, opacity, abstains, 0, 0, width, height));
}

/** The name of an emotion beside how it looks. */
const named = (look) =>
  html("div", { class: "named" }, swatch(look, 1, false, 24), html("span", {}, nameOf(look)));

function legend(looks) {
  const pattern = (look) =>
    svg("svg", { class: "swatch", width: 12, height: 18, "aria-hidden": "true" },
      mark(look, 1, false, 0, 0, 7, 18));
  const items = [...looks.values()].map((look) => {
    const item = named(look);
    item.prepend(pattern(look));
    return html("li", {}, item);
  });
  document.getElementById("legend").replaceChildren(...items);
}
