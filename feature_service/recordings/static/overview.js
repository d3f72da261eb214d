// Many recordings: how long each is, its emotions, how much its heads disagree.
(() => {
  // The same emotion looks the same in every recording, whatever the classes of its model.
  const looks = looksOf([...new Set(data.recordings.flatMap((one) => Object.keys(one.mix)))]);
  const list = document.getElementById("recordings");
  let width = 0;

  function bar(mix, long) {
    const parts = [];
    let x = 0;
    for (const [c, share] of Object.entries(mix)) {
      const title = `${nameOf(looks.get(c))} ${percent(share)}`;
      parts.push(mark(looks.get(c), 1, false, x, 0, Math.max(1, long * share - 2), 22, title));
      x += long * share;
    }
    const spoken = parts.map((part) => part.querySelector("title").textContent).join(", ");
    return svg("svg", { role: "img", "aria-label": spoken }, ...parts);
  }

  function entry(one) {
    const figures = [
      clock(one.duration_s),
      say("count", one.utterances),
      typeof one.disagreement === "number"
        ? say("disagreement", one.disagreement.toFixed(2)) : say("no_disagreement"),
      one.failed ? say("failed", one.failed) : null,
    ];
    const name = one.page ? html("a", { href: one.page }, one.recording) : one.recording;
    return html("li", {},
      html("h2", {}, name),
      one.error ? html("p", { class: "notice" }, `${say("error")}: ${one.error}`)
        : html("p", { class: "figures soft" },
            ...figures.filter(Boolean).map((text) => html("span", {}, text))),
      Object.keys(one.mix).length ? bar(one.mix, width - 24) : null);
  }

  function draw() {
    width = list.clientWidth;
    legend(looks);
    list.replaceChildren(...data.recordings.map(entry));
    if (!data.recordings.length)
      list.append(html("li", { class: "soft" }, say("no_recordings")));
  }
  document.body.append(patterns());
  start(draw);
  new ResizeObserver(() => list.clientWidth !== width && draw()).observe(list);
})();
