// One recording: a player, and what the four heads say in step with it.
(() => {
  const $ = (id) => document.getElementById(id);
  const rows = data.utterances, classes = data.classes, source = data.page.source;
  const [frameWidth, frameHeight] = data.picture_size ?? [0, 0]; // in whose pixels boxes lie
  const looks = looksOf(classes);
  const UNIMODAL = HEADS.slice(0, 3);
  // Whoever judges without having seen the answers opens the page with it.
  const blind = location.hash === "#blind";
  const answers = (row, head) => !blind && Boolean(row[`label_${head}`]);
  const sure = (row, head) => answers(row, head) && !row[`abstain_${head}`];
  const top = (row, head) => Math.max(...row[`probabilities_${head}`]);
  const look = (row, head) => looks.get(row[`label_${head}`]);
  const differs = (row) =>
    new Set(UNIMODAL.filter((h) => sure(row, h)).map((h) => row[`label_${h}`])).size > 1;
  const order = rows.map((_, k) => k).sort((a, b) => rows[a].start_s - rows[b].start_s || a - b);
  const apart = order.filter((k) => differs(rows[k]));
  const end = Math.max(data.duration_s ?? 0, ...rows.map((r) => r.end_s), 0.1);
  const clamp = (x, low, high) => Math.max(low, Math.min(high, x));

  // ---- The player, or a clock where nothing plays ----
  const video = $("stage").querySelector("video");
  let simulated = null; // {at, since}: seconds, and when it was started or null
  let trouble = "";

  const now = () => {
    if (!simulated) return video.currentTime;
    const since = simulated.since === null ? 0 : (performance.now() - simulated.since) / 1000;
    return Math.min(end, simulated.at + since);
  };
  const playing = () => (simulated ? simulated.since !== null : !video.paused);

  function seek(seconds) {
    const to = clamp(seconds, 0, end);
    if (!simulated) video.currentTime = to;
    else simulated = { at: to, since: playing() ? performance.now() : null };
    tick(to);
  }
  function toggle() {
    if (simulated) {
      const stop = playing(), at = now() >= end ? 0 : now();
      simulated = { at, since: stop ? null : performance.now() };
    } else if (video.paused) video.play().catch(() => {});
    else video.pause();
    run();
  }
  function simulate(reason) {
    simulated = { at: 0, since: null };
    $("stage").hidden = true;
    report(reason);
    run();
  }
  function report(reason) {
    trouble = reason;
    $("notice").hidden = !reason;
    $("notice").textContent = reason ? say(reason) : "";
  }
  let running = false;
  function run() {
    $("play").textContent = playing() ? `❚❚ ${say("pause")}` : `▶ ${say("play")}`;
    if (running) return;
    running = true;
    requestAnimationFrame(function step() {
      if (simulated && playing() && now() >= end) simulated = { at: end, since: null };
      tick(now());
      running = playing();
      if (running) requestAnimationFrame(step);
      else $("play").textContent = `▶ ${say("play")}`;
    });
  }
  for (const name of ["play", "pause", "seeked", "timeupdate"]) video.addEventListener(name, run);
  video.addEventListener("error", () => simulate("no_video"));
  video.addEventListener("loadedmetadata", () => {
    $("stage").classList.toggle("sound", !video.videoWidth);
    if (!video.videoWidth && frameWidth) report("no_picture");
    // As wide as a picture of that height is: the faces' boxes lie over all of it.
    const shape = video.videoWidth / video.videoHeight;
    if (shape) $("stage").style.width = `min(100%, ${(46 * shape).toFixed(2)}vh)`;
    strip();
  });

  // ---- Which utterance ----
  let current = -1;
  const holds = (k, t) => k >= 0 && rows[k].start_s <= t && t < rows[k].end_s;
  const weight = (row) => HEADS.filter((h) => answers(row, h)).length + (row.text ? 0.5 : 0);

  function at(t) {
    if (holds(current, t)) return current;
    // Of those at once the one who speaks, of whom more is known.
    const here = order.filter((k) => holds(k, t));
    return here.reduce((best, k) =>
      best < 0 || weight(rows[k]) > weight(rows[best]) ? k : best, -1);
  }
  function choose(k) {
    current = k;
    // Into it, not onto its edge: a player rounds.
    seek(rows[k].start_s + Math.min(0.01, (rows[k].end_s - rows[k].start_s) / 2));
  }
  function jump(step) {
    const t = now();
    const next = step > 0
      ? apart.find((k) => rows[k].start_s > t + 0.02)
      : apart.findLast((k) => rows[k].start_s < t - 0.5);
    if (next !== undefined) choose(next);
  }

  let shown = null, spokenOf = null;
  function tick(t) {
    const k = at(t);
    current = k;
    $("clock").textContent = `${clock(t)} / ${clock(end)}`;
    follow(t);
    playhead(t);
    boxes(t);
    if (k !== shown) {
      shown = k;
      panel();
      highlight();
    }
    const line = $("timeline");
    if (line.getAttribute("aria-valuenow") === t.toFixed(0)) return;
    line.setAttribute("aria-valuenow", t.toFixed(0));
    line.setAttribute("aria-valuetext", say("at", clock(t), clock(end)));
  }

  // ---- Lanes ----
  const layersOf = (head) => {
    const ends = [];
    return new Map(order.filter((k) => answers(rows[k], head)).map((k) => {
      let layer = ends.findIndex((last) => last <= rows[k].start_s + 1e-6);
      if (layer < 0) layer = ends.length;
      ends[layer] = rows[k].end_s;
      return [k, layer];
    }));
  };
  const layers = Object.fromEntries(HEADS.map((head) => [head, layersOf(head)]));
  const depth = (head) => Math.max(1, ...[...layers[head].values()].map((n) => n + 1));
  const SPANS = [10, 20, 30, 60, 120, 300, 600, 1800, 3600].filter((s) => s < end);
  const STEPS = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600];
  const GAP = 4, APART = 30, AXIS = 18, NARROW = 600;
  let width = 0, left = 0, zoom = null; // index of SPANS; their number: all of it
  let view = [0, end], scale = 1, height = 0;

  const x = (t) => left + (t - view[0]) * scale;
  const span = () => (zoom < SPANS.length ? SPANS[zoom] : end);

  function follow(t) {
    if (t >= view[0] && t <= view[1]) return;
    const from = clamp(t - span() / 10, 0, Math.max(0, end - span()));
    view = [from, from + span()];
    lanes();
  }
  function rescale(step) {
    zoom = clamp(zoom + step, 0, SPANS.length);
    const from = clamp(now() - span() / 2, 0, Math.max(0, end - span()));
    view = [from, from + span()];
    lanes();
  }

  function describe(row, head) {
    const doubt = row[`abstain_${head}`] ? "?" : "";
    return `${say(head)}: ${nameOf(look(row, head))} ${percent(top(row, head))}${doubt}`;
  }
  const label = (name) => (width < NARROW ? say(`short_${name}`) : null) ?? say(name);
  const visible = (row) => row.end_s > view[0] && row.start_s < view[1];
  /** Left edge and width of a stretch within the view, at least one pixel. */
  function extent(row) {
    const a = clamp(x(row.start_s), left, width), b = clamp(x(row.end_s), left, width);
    return [a, Math.max(1, b - a - (b - a > 4 ? 1 : 0))];
  }

  function lanes() {
    if (width <= left) return; // nothing is laid out
    scale = (width - left) / (view[1] - view[0]);
    $("out").disabled = zoom === SPANS.length;
    $("in").disabled = zoom === 0;
    const parts = [];
    const step = STEPS.find((s) => s * scale >= 64) ?? 7200;
    for (let t = Math.ceil(view[0] / step) * step; t <= view[1]; t += step) {
      parts.push(svg("text", { class: "soft", x: Math.min(x(t) + 3, width - 34), y: 12 },
        step < 1 ? t.toFixed(1) : clock(t)));
      parts.push(svg("line", { class: "tick", x1: x(t), x2: x(t), y1: 0, y2: AXIS }));
    }
    let y = AXIS + 2;
    for (const head of HEADS) {
      const deep = depth(head), each = deep > 1 ? 18 : 24, tall = deep * each;
      parts.push(svg("text", { x: 0, y: y + tall / 2 + 4 }, label(head)));
      parts.push(svg("rect", { class: "lane", x: left, y, width: width - left, height: tall,
        rx: 3 }));
      if (!layers[head].size)
        parts.push(svg("text", { class: "soft", x: left + 8, y: y + 16 }, say("nobody")));
      for (const [k, layer] of layers[head]) {
        const row = rows[k];
        if (!visible(row)) continue;
        const [from, long] = extent(row);
        const node = mark(look(row, head), opacityOf(top(row, head), classes.length),
          row[`abstain_${head}`], from, y + layer * each, long, each - (deep > 1 ? 1 : 0),
          `${clock(row.start_s)} ${describe(row, head)}`);
        node.dataset.row = k;
        parts.push(node);
      }
      y += tall + GAP;
    }
    parts.push(svg("text", { x: 0, y: y + APART / 2 + 4 }, label("apart")));
    parts.push(svg("rect", { class: "lane", x: left, y, width: width - left, height: APART,
      rx: 3 }));
    for (const row of rows) {
      if (blind || typeof row.disagreement !== "number" || !visible(row)) continue;
      const [from, long] = extent(row), tall = Math.max(1, row.disagreement * (APART - 9));
      const bar = svg("rect", { class: differs(row) ? "apart" : "rest", x: from, width: long,
        y: y + APART - tall, height: tall });
      bar.append(svg("title", {}, say("disagreement", row.disagreement.toFixed(2))));
      parts.push(bar);
      const middle = from + long / 2;
      if (differs(row))
        parts.push(svg("path", { class: "apart",
          d: `M${middle - 4} ${y + 1}h8l-4 6z` }));
    }
    height = y + APART;
    parts.push(svg("rect", { class: "now", id: "now", y: AXIS, height: height - AXIS, rx: 3 }));
    parts.push(svg("line", { class: "head", id: "head", y1: 0, y2: height }));
    $("timeline").replaceChildren(svg("svg", { viewBox: `0 0 ${width} ${height}`, height,
      "aria-hidden": "true" }, ...parts));
    map();
    playhead(now());
    highlight();
    later();
  }

  function map() {
    $("map").hidden = zoom === SPANS.length;
    if ($("map").hidden) return;
    const head = HEADS.findLast((h) => layers[h].size), to = (t) => left + t / end * (width - left);
    const parts = [svg("rect", { class: "lane", x: left, y: 0, width: width - left, height: 16 })];
    for (const k of head ? layers[head].keys() : []) {
      const row = rows[k], wide = Math.max(1, to(row.end_s) - to(row.start_s));
      parts.push(svg("rect", { x: to(row.start_s), y: 0, width: wide, height: 12,
        fill: shade(look(row, head).colour, opacityOf(top(row, head), classes.length)).fill }));
    }
    for (const k of apart)
      parts.push(svg("rect", { class: "apart", x: to(rows[k].start_s), y: 13, width: 2,
        height: 3 }));
    parts.push(svg("rect", { class: "window", x: to(view[0]), y: 0, height: 16,
      width: Math.max(3, to(view[1]) - to(view[0])) }));
    parts.push(svg("line", { class: "head", id: "map-head", y1: 0, y2: 16 }));
    $("map").replaceChildren(svg("svg", { viewBox: `0 0 ${width} 16`, height: 16,
      "aria-hidden": "true" }, ...parts));
  }

  function playhead(t) {
    const line = $("head"), small = $("map-head");
    if (!line) return;
    line.setAttribute("x1", x(t));
    line.setAttribute("x2", x(t));
    if (!small) return;
    small.setAttribute("x1", left + t / end * (width - left));
    small.setAttribute("x2", left + t / end * (width - left));
  }

  function highlight() {
    const frame = $("now"), row = rows[current];
    if (frame) {
      const there = row && visible(row), [from, long] = there ? extent(row) : [0, 0];
      frame.setAttribute("x", from);
      frame.setAttribute("width", there ? Math.max(3, long) : 0);
    }
    for (const button of $("lines").querySelectorAll("[aria-current]"))
      button.removeAttribute("aria-current");
    const line = $("lines").querySelector(`[data-row="${current}"]`);
    if (!line) return;
    line.setAttribute("aria-current", "true");
    // Scrolled by hand: scrollIntoView would move the page as well.
    const list = $("lines"), above = line.offsetTop - list.scrollTop;
    if (above < 0 || above + line.offsetHeight > list.clientHeight)
      list.scrollTop = line.offsetTop - list.clientHeight / 3;
  }

  function pointer(node, toTime) {
    let held = false;
    const go = (event) => seek(toTime(event.clientX - node.getBoundingClientRect().left));
    node.addEventListener("pointerdown", (event) => {
      held = true;
      node.setPointerCapture(event.pointerId);
      const over = event.target.closest("[data-row]");
      if (over) current = Number(over.dataset.row);
      go(event);
    });
    node.addEventListener("pointermove", (event) => held && go(event));
    for (const name of ["pointerup", "pointercancel"])
      node.addEventListener(name, () => { held = false; });
  }
  pointer($("timeline"), (px) => clamp(view[0] + (px - left) / scale, view[0], view[1]));
  pointer($("map"), (px) => clamp((px - left) / (width - left), 0, 1) * end);

  // ---- Faces: boxes over the picture, and small pictures under the lanes ----
  const faced = rows.filter((row) => row.boxes?.length);
  const seen = faced.flatMap((row) => row.boxes);
  const CORNERS = ["x1", "y1", "x2", "y2"];
  const NEAR = 1.5; // seconds between two boxes that one lies between

  function boxAt(row, t) {
    const after = row.boxes.find((b) => b.time_s >= t);
    const before = row.boxes.findLast((b) => b.time_s <= t);
    if (!before || !after) {
      const one = before ?? after;
      return one && Math.abs(one.time_s - t) <= NEAR / 2 ? one : null;
    }
    const gap = after.time_s - before.time_s, share = gap ? (t - before.time_s) / gap : 0;
    if (gap > NEAR) return null;
    const between = (c) => before[c] + share * (after[c] - before[c]);
    return Object.fromEntries(CORNERS.map((c) => [c, between(c)]));
  }

  function boxes(t) {
    if (!frameWidth) return;
    const parts = [];
    for (const row of faced) {
      const box = row.start_s <= t && t < row.end_s ? boxAt(row, t) : null;
      if (!box) continue;
      const look_ = answers(row, "vision") ? look(row, "vision") : null;
      const size = frameHeight / 16, colour = look_?.colour ?? GREY;
      parts.push(svg("rect", { x: box.x1, y: box.y1, width: box.x2 - box.x1,
        height: box.y2 - box.y1, stroke: colour,
        "stroke-dasharray": look_ && row.abstain_vision ? "6 4" : null }));
      if (!look_) continue;
      const letter = letterOf(look_) + (row.abstain_vision ? "?" : "");
      const label = svg("text", { x: box.x1 + size / 4, y: Math.max(size, box.y1 - size / 4),
        stroke: "#000000", "stroke-width": size / 6, "paint-order": "stroke" }, letter);
      label.style.font = `700 ${size}px sans-serif`;
      label.style.fill = "#ffffff";
      parts.push(label);
    }
    $("faces").replaceChildren(...parts);
  }

  const CELL = 48;
  let seeker = null, wanted = 0, timer = 0;
  const kept = new Map(); // second -> canvas
  function later() {
    clearTimeout(timer);
    timer = setTimeout(strip, 250);
  }
  /** The faces of the stretch shown, drawn from a second player that nobody sees. */
  async function strip() {
    const mine = ++wanted, canvas = $("strip");
    canvas.hidden = !faced.length || !frameWidth || !video.videoWidth || simulated !== null;
    if (canvas.hidden) return;
    const ratio = devicePixelRatio, long = width - left;
    canvas.width = long * ratio;
    canvas.height = CELL * ratio;
    canvas.style.width = `${long}px`;
    canvas.style.marginLeft = `${left}px`;
    const pen = canvas.getContext("2d");
    for (let px = 0; px + CELL <= long; px += CELL + 2) {
      const middle = view[0] + (px + CELL / 2) / scale, reach = CELL / 2 / scale;
      const near = seen.reduce((best, b) =>
        Math.abs(b.time_s - middle) < Math.abs(best.time_s - middle) ? b : best);
      if (Math.abs(near.time_s - middle) > Math.max(reach, 0.15)) continue;
      const face = kept.get(near.time_s) ?? (await pictureOf(near));
      if (mine !== wanted) return;
      if (!face) continue;
      kept.set(near.time_s, face);
      pen.drawImage(face, px * ratio, 0, CELL * ratio, CELL * ratio);
    }
  }
  async function pictureOf(box) {
    if (!seeker) {
      seeker = html("video", { src: source, preload: "auto", playsinline: "" });
      seeker.muted = true;
    }
    const reached = await new Promise((done) => {
      setTimeout(() => done(false), 4000);
      seeker.onseeked = () => done(true);
      // Not onto its edge: a player rounds, and a preview has fewer pictures.
      seeker.currentTime = box.time_s + 0.02;
    });
    if (!reached || !seeker.videoWidth) return null;
    // The preview may be smaller than the picture that the boxes lie in.
    const sx = seeker.videoWidth / frameWidth, sy = seeker.videoHeight / frameHeight;
    const side = Math.max(box.x2 - box.x1, box.y2 - box.y1) * 1.1;
    const cx = (box.x1 + box.x2) / 2, cy = (box.y1 + box.y2) / 2;
    const face = html("canvas", { width: 2 * CELL, height: 2 * CELL });
    face.getContext("2d").drawImage(seeker, (cx - side / 2) * sx, (cy - side / 2) * sy, side * sx,
      side * sy, 0, 0, 2 * CELL, 2 * CELL);
    return face;
  }

  // ---- The current utterance ----
  const title = (row) => [
    `${clock(row.start_s)}–${clock(row.end_s)}`,
    say(`kind_${row.kind}`) ?? row.kind,
    row.speaker && row.speaker !== "unknown" ? row.speaker : null,
  ].filter(Boolean).join(" · ");
  const WORDLESS = { speech: "wordless", listener: "listening" };
  const words = (row) => row.text || say(WORDLESS[row.kind] ?? "silent");

  function panel() {
    const row = rows[current];
    $("which").textContent = row ? `${row.utterance}. ${title(row)}` : say("utterance");
    $("quote").textContent = row ? words(row) : say(rows.length ? "nothing" : "empty");
    $("quote").classList.toggle("soft", !row?.text);
    $("heads").hidden = $("rough").hidden = !row;
    $("facts").textContent = row ? facts(row).join(" · ") : "";
    if (row) heads(row);
    if (current !== spokenOf) {
      spokenOf = current;
      const best = row && HEADS.findLast((h) => answers(row, h));
      $("live").textContent = row
        ? `${title(row)}. ${words(row)} ${best ? describe(row, best) : say("none")}`
        : "";
    }
  }
  function facts(row) {
    const list = [];
    if (row.error) list.push(`${say("error")}: ${row.error}`);
    if (row.text_source) {
      const from = say(`source_${row.text_source}`) ?? row.text_source;
      const confidence = row.text_confidence ?? null;
      list.push(confidence === null ? from : `${from} ${percent(confidence)}`);
    }
    if (row.track !== null && row.track !== undefined) list.push(say("face_number", row.track));
    if (!blind && typeof row.disagreement === "number")
      list.push(say("disagreement", row.disagreement.toFixed(2)));
    return list;
  }
  function heads(row) {
    const cell = (head, k) => {
      const all = row[`probabilities_${head}`];
      if (!answers(row, head)) return html("td", {}, "–");
      const bar = html("i", { "aria-hidden": "true" });
      bar.style.width = `${Math.max(1, 100 * all[k])}%`;
      const most = classes[k] === row[`label_${head}`];
      return html("td", { class: most ? "most" : null }, all[k].toFixed(2), bar);
    };
    const foot = (head) => {
      if (!answers(row, head)) return html("td", { class: "soft" }, say("none"));
      const doubt = row[`abstain_${head}`];
      return html("td", {}, swatch(look(row, head), opacityOf(top(row, head), classes.length),
        doubt, doubt ? 34 : 26, 20), row[`calibrated_${head}`] === false ? " *" : "");
    };
    $("heads").replaceChildren(
      html("thead", {}, html("tr", {}, html("th", { scope: "col" }, say("emotion")),
        ...HEADS.map((h) => html("th", { scope: "col" }, label(h))))),
      html("tbody", {}, ...classes.map((c, k) => html("tr", {},
        html("th", { scope: "row" }, named(looks.get(c))),
        ...HEADS.map((h) => cell(h, k))))),
      html("tfoot", {},
        html("tr", {}, html("th", { scope: "row" }, say("answer")), ...HEADS.map(foot)),
        html("tr", {}, html("th", { scope: "row" }, say("yours")),
          ...HEADS.map((h) => html("td", {}, asked(row, h) ? choice(h) : "")))),
    );
    $("rough").hidden = !HEADS.some((h) => answers(row, h) && row[`calibrated_${h}`] === false);
  }

  // ---- What a person says instead: a line for each time that they do ----
  const asked = (row, head) => Boolean(row[`label_${head}`]); // there is something to be judged by
  const service = data.page.corrections; // where lines are sent; null: they are saved as a file
  const corrected = new Map(); // "row head" -> label
  const unsaved = [];

  function choice(head) {
    const k = current, now = corrected.get(`${k} ${head}`) ?? "";
    const option = (value, text) =>
      html("option", { value, selected: value === now ? "" : null }, text);
    return html("select", { "data-head": head, "aria-label": say("yours_of", say(head)),
      onchange: (event) => correct(k, head, event.target.value || null) },
    option("", "–"), ...classes.map((c) => option(c, nameOf(looks.get(c)))));
  }
  function keepLine(k, head, label) {
    if (label) corrected.set(`${k} ${head}`, label);
    else corrected.delete(`${k} ${head}`);
  }
  async function correct(k, head, label) {
    const given = { row: k, head, label, seen: !blind };
    try {
      if (service) await told("POST", given);
      else unsaved.push({ media_sha256: data.media_sha256, ...given, start_s: rows[k].start_s,
        end_s: rows[k].end_s, predicted: rows[k][`label_${head}`], model: data.model,
        who: $("who").value.trim() || "anonymous",
        when: new Date().toISOString().replace(/\.\d+Z$/, "Z") });
      keepLine(k, head, label);
      $("kept").textContent = say(service ? "sent" : "unsaved", unsaved.length);
    } catch (problem) {
      $("kept").textContent = say("not_kept", problem.message);
    }
    $("corrections").disabled = !unsaved.length;
    lines();
    highlight();
    if (current !== k) return;
    panel();
    $("heads").querySelector(`[data-head=${head}]`)?.focus();
  }
  async function told(method, given) {
    const answer = await fetch(service, { method, body: given && JSON.stringify(given),
      headers: given ? { "content-type": "application/json" } : {} });
    const read = await answer.json();
    if (!answer.ok) throw new Error(typeof read.detail === "string" ? read.detail : answer.status);
    return read;
  }
  function corrections() {
    $("who-label").hidden = $("corrections").hidden = Boolean(service);
    $("corrections").disabled = !unsaved.length;
    $("kept-note").textContent = say(service ? "kept_there" : "kept_here");
    $("blind").textContent = say(blind ? "look" : "judge_blind");
    $("blind").onclick = () => { // what a page has shown cannot be taken back: it begins anew
      location.hash = blind ? "" : "#blind";
      location.reload();
    };
  }
  addEventListener("beforeunload", (event) => unsaved.length && event.preventDefault());

  // ---- All utterances ----
  function line(k) {
    const row = rows[k];
    const chips = HEADS.map((h) => answers(row, h)
      ? swatch(look(row, h), opacityOf(top(row, h), classes.length), row[`abstain_${h}`], 26, 18)
      : svg("svg", { class: "swatch", width: 26, height: 18, "aria-hidden": "true" },
          svg("text", { class: "soft", x: 9, y: 13 }, "–")));
    const who = row.speaker && row.speaker !== "unknown" ? html("b", {}, `${row.speaker}: `) : null;
    const spoken = HEADS.filter((h) => answers(row, h)).map((h) => describe(row, h));
    const button = { type: "button", "data-row": k, onclick: () => choose(k) };
    return html("li", {}, html("button", button,
      html("time", {}, clock(row.start_s)),
      html("span", { class: `words${row.text ? "" : " soft"}` }, who, words(row),
        row.error ? html("span", { class: "failed small" }, `${say("error")}: ${row.error}`)
          : null),
      html("span", { class: "chips" },
        html("span", { class: "differs", "aria-hidden": "true" },
          (HEADS.some((h) => corrected.has(`${k} ${h}`)) ? "✎" : "") + (differs(row) ? "▼" : "")),
        ...chips),
      html("span", { class: "spoken" },
        [...spoken, differs(row) ? say("apart") : ""].join(", "))));
  }
  function lines() {
    $("lines").replaceChildren(...order.map(line));
    if (!rows.length) $("lines").append(html("li", { class: "soft" }, say("empty")));
  }

  // ---- Which emotion goes with which ----
  const PAIRS = [["vision", "audio"], ["vision", "text"], ["audio", "text"]]
    .filter(([a, b]) => rows.some((r) => answers(r, a) && answers(r, b)));
  let pair = 0, uncertain = false, picked = "";

  function coherence() {
    if (!PAIRS.length) {
      $("pairs").replaceChildren(html("p", { class: "soft" }, say("pairs_none")));
      $("matrix").replaceChildren();
      $("cell").replaceChildren();
      return;
    }
    const option = ([a, b], k) => html("label", {},
      html("input", { type: "radio", name: "pair", checked: k === pair ? "" : null,
        onchange: () => { pair = k; picked = ""; matrix(); } }), ` ${say(a)} × ${say(b)}`);
    $("pairs").replaceChildren(
      html("fieldset", {}, html("legend", {}, say("pair")), ...PAIRS.map(option)),
      html("label", { class: "small" }, html("input", { type: "checkbox",
        checked: uncertain ? "" : null,
        onchange: (event) => { uncertain = event.target.checked; matrix(); } }),
      ` ${say("uncertain")}`));
    matrix();
  }
  function matrix() {
    const [a, b] = PAIRS[pair];
    const both = order.filter((k) => answers(rows[k], a) && answers(rows[k], b));
    const counted = both.filter((k) => uncertain || (sure(rows[k], a) && sure(rows[k], b)));
    const cells = new Map();
    for (const k of counted) {
      const key = `${rows[k][`label_${a}`]}\n${rows[k][`label_${b}`]}`;
      cells.set(key, [...(cells.get(key) ?? []), k]);
    }
    const most = Math.max(1, ...[...cells.values()].map((list) => list.length));
    const cell = (down, across) => {
      const key = `${down}\n${across}`, list = cells.get(key) ?? [];
      const names = say("cell", list.length, `${say(a)} ${nameOf(looks.get(down))}`,
        `${say(b)} ${nameOf(looks.get(across))}`);
      const button = html("button", { type: "button", disabled: list.length ? null : "",
        "aria-label": names, title: names, "aria-pressed": String(key === picked),
        onclick: () => { picked = key === picked ? "" : key; matrix(); } },
      list.length ? String(list.length) : "");
      if (list.length) {
        const { fill: ground, ink } = shade(variable("--accent"), 0.2 + 0.8 * list.length / most);
        button.style.background = ground;
        button.style.color = ink;
      }
      return html("td", { class: down === across ? "same" : null }, button);
    };
    const head = (c, scope) => html("th", { scope, title: nameOf(looks.get(c)) },
      scope === "row" ? named(looks.get(c)) : swatch(looks.get(c), 1, false, 26),
      scope === "row" ? null : html("span", { class: "spoken" }, nameOf(looks.get(c))));
    const omitted = both.length - counted.length;
    const refocus = document.activeElement?.closest("#matrix");
    $("matrix").replaceChildren(
      html("p", { class: "small soft" }, say("matrix", say(a), say(b)),
        omitted ? ` ${say("left_out", omitted, both.length)}` : ""),
      html("table", {},
        html("thead", {}, html("tr", {}, html("td"), ...classes.map((c) => head(c, "col")))),
        html("tbody", {}, ...classes.map((down) => html("tr", {}, head(down, "row"),
          ...classes.map((across) => cell(down, across)))))));
    if (refocus) $("matrix").querySelector("[aria-pressed=true]")?.focus();
    const list = cells.get(picked);
    $("cell").replaceChildren(...(list ? [
      html("ol", { class: "lines" }, ...list.map(line)),
    ] : []));
  }

  // ---- Files ----
  function save(name, type, text) {
    const link = html("a", { download: `${data.page.name}.${name}`,
      href: URL.createObjectURL(new Blob([text], { type })) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
  const { page: _, ...result } = data;

  /** The columns of the CSV file beside the page: no boxes, a column per class. */
  function csv() {
    const names = Object.keys(rows[0] ?? {}).filter((name) => name !== "boxes");
    const columns = names.flatMap((name) => {
      const head = name.replace(/^probabilities_/, "");
      return head === name
        ? [[name, (row) => row[name]]]
        : classes.map((c, k) => [`probability_${head}_${c}`, (row) => row[name]?.[k]]);
    });
    const text = (value) => {
      if (value === null || value === undefined) return "";
      if (typeof value === "boolean") return value ? "True" : "False";
      const plain = typeof value === "object" ? JSON.stringify(value) : String(value);
      return /[",\r\n]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain;
    };
    const all = [columns.map(([name]) => text(name)),
      ...rows.map((row) => columns.map(([, value]) => text(value(row))))];
    return all.map((cells) => cells.join(",") + "\n").join("");
  }

  const plain = (text) => text.replace(/[\x00-\x1f\x7f]/g, " ")
    .replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

  /** What annotations.webvtt writes. */
  function vtt() {
    const stamp = (seconds) => {
      const ms = Math.round(seconds * 1000), two = (n) => String(n).padStart(2, "0");
      return `${two(Math.floor(ms / 3600000))}:${two(Math.floor(ms / 60000) % 60)}:` +
        `${two(Math.floor(ms / 1000) % 60)}.${String(ms % 1000).padStart(3, "0")}`;
    };
    const blocks = ["WEBVTT"];
    for (const row of rows) {
      const cue = [];
      if (row.text)
        cue.push((row.speaker === "unknown" ? "" : `<v ${plain(row.speaker)}>`) + plain(row.text));
      const head = ["multimodal", ...UNIMODAL].find((h) => answers(row, h));
      if (head)
        cue.push(`[${head}: ${plain(row[`label_${head}`])} ${percent(top(row, head))}` +
          `${row[`abstain_${head}`] ? "?" : ""}]`);
      if (cue.length)
        blocks.push([`${stamp(row.start_s)} --> ${stamp(row.end_s)}`, ...cue].join("\n"));
    }
    return blocks.join("\n\n") + "\n";
  }

  // ---- Keys and buttons ----
  $("play").onclick = toggle;
  $("next").onclick = () => jump(1);
  $("previous").onclick = () => jump(-1);
  $("in").onclick = () => rescale(-1);
  $("out").onclick = () => rescale(1);
  $("help-button").onclick = () => $("help").showModal();
  $("csv").onclick = () => save("csv", "text/csv", csv());
  $("json").onclick = () =>
    save("json", "application/json", JSON.stringify(result, null, 1) + "\n");
  $("corrections").onclick = () => {
    const text = unsaved.splice(0).map((one) => JSON.stringify(one) + "\n").join("");
    save("corrections.jsonl", "application/jsonl", text);
    $("corrections").disabled = true;
    $("kept").textContent = "";
  };
  $("vtt").onclick = () => save("vtt", "text/vtt", vtt());

  const KEYS = {
    " ": toggle, ArrowLeft: () => seek(now() - 5), ArrowRight: () => seek(now() + 5),
    n: () => jump(1), p: () => jump(-1), "+": () => rescale(-1), "-": () => rescale(1),
    "?": () => $("help").showModal(),
  };
  // Before the player's own keys, or one press would seek twice.
  document.addEventListener("keydown", (event) => {
    const inside = event.target.closest?.("input, select, textarea, dialog");
    const pressed = event.key === " " && event.target.closest?.("button, summary, a");
    const what = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!what || inside || pressed || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    what();
  }, true);

  // ---- All of it ----
  function about() {
    const { schema, version, utterances, note, ...whole } = result;
    $("note").hidden = !note;
    $("note").textContent = note ?? "";
    const text = (value) => Array.isArray(value) ? value.join(", ")
      : typeof value === "object" ? JSON.stringify(value) : String(value);
    const told = Object.entries(whole).filter(([, value]) => value !== null && value !== "");
    $("facts-of-all").replaceChildren(...told.flatMap(([name, value]) =>
      [html("dt", {}, name), html("dd", {}, text(value))]));
  }
  function measure() {
    width = $("timeline").clientWidth;
    left = width < NARROW ? 50 : 96;
  }
  function draw() {
    measure();
    if (zoom === null) {
      // At first as much as leaves a second eight pixels.
      const most = Math.max(30, (width - left) / 8);
      zoom = end <= most ? SPANS.length : SPANS.findLastIndex((s) => s <= most);
      view = [0, span()];
    }
    legend(looks);
    lines();
    coherence();
    about();
    corrections();
    lanes();
    panel();
    report(trouble);
    for (const id of ["next", "previous"]) $(id).disabled = !apart.length;
    $("timeline").setAttribute("aria-valuemax", end.toFixed(1));
    run();
  }

  document.body.append(patterns());
  $("faces").setAttribute("viewBox", `0 0 ${frameWidth || 1} ${frameHeight || 1}`);
  $("faces").setAttribute("preserveAspectRatio", "none");
  const captions = video.addTextTrack("captions", data.page.name);
  for (const row of rows.filter((one) => one.text))
    captions.addCue(new VTTCue(row.start_s, row.end_s, plain(row.text)));
  if (source) video.src = source;
  else simulate("no_media");
  start(draw);
  if (service) {
    told("GET").then((all) => {
      for (const one of all) keepLine(one.row, one.head, one.label);
      draw();
    }).catch((problem) => { $("kept").textContent = say("not_kept", problem.message); });
  }
  new ResizeObserver(() => {
    if ($("timeline").clientWidth === width) return;
    measure();
    lanes();
  }).observe($("timeline"));
})();
