// Charts, live pages, and the numbers of a token. Everything else works without this file.
"use strict";

const COLOURS = ["#2563eb", "#ea7317", "#2a9d57", "#8b5cf6", "#0d9488", "#d64545", "#9aa5b1"];
const WHOLE = [1, 2, 5].flatMap((digit) => [...Array(9).keys()].map((zeros) => digit * 10 ** zeros)).sort((a, b) => a - b);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// All boxes stand before the first chart is drawn: a box alone in the grid is as wide as the page.
function boxOf(place, chart) {
  const box = document.createElement("div");
  box.className = "chart";
  const title = document.createElement("h3");
  title.textContent = chart.title;
  const note = document.createElement("p");
  note.textContent = chart.note;
  box.append(title, note);
  place.append(box);
  return box;
}

const isTiny = (number) => number !== 0 && Math.abs(number) < 0.001;
const short = (number) =>
  number === null || number === undefined ? "–" : isTiny(number) ? number.toExponential(1) : String(+number.toPrecision(4));
const shown = (chart) => (number) =>
  number === null || number === undefined ? "–" : chart.is_share ? `${(100 * number).toFixed(1)} %` : short(number);

// From the least to the most of all numbers, ends of intervals included, and from 0 where none is below.
function span(chart) {
  if (chart.span) return chart.span;
  const all = [...chart.points.slice(1), ...chart.intervals.flatMap((ends) => ends || [])].flat();
  const known = all.filter((number) => number !== null);
  return known.length ? [Math.min(0, ...known), Math.max(...known)] : [0, 1];
}

function lastPlaces(points) {
  return points.map((numbers) => numbers.findLastIndex((number) => number !== null)).map((i) => (i < 0 ? null : i));
}

// Where the mouse is not in a chart, its legend has the last numbers.
function atRest(plot) {
  setTimeout(() => plot.setLegend({ idxs: lastPlaces(plot.data) }, false)); // uPlot empties it first
}

function drawIntervals(plot) {
  const { ctx } = plot;
  ctx.save();
  ctx.lineWidth = devicePixelRatio * 1.5;
  plot.chart.intervals.forEach((ends, i) => {
    if (!ends || !plot.series[i + 1].show) return;
    ctx.strokeStyle = plot.series[i + 1]._stroke || COLOURS[i % COLOURS.length];
    const cap = 3 * devicePixelRatio;
    ends[0].forEach((low, at) => {
      const high = ends[1][at];
      if (low === null || high === null) return;
      const x = plot.valToPos(plot.data[0][at], "x", true);
      const [bottom, top] = [low, high].map((number) => plot.valToPos(number, "y", true));
      ctx.beginPath();
      for (const [from, to] of [[[x, bottom], [x, top]], [[x - cap, bottom], [x + cap, bottom]], [[x - cap, top], [x + cap, top]]]) {
        ctx.moveTo(...from);
        ctx.lineTo(...to);
      }
      ctx.stroke();
    });
  });
  ctx.restore();
}

function draw(box, chart) {
  const axis = { stroke: css("--muted"), grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line") } };
  const whole = chart.points[0].every(Number.isInteger);
  const series = chart.labels.map((label, i) => ({
    label,
    stroke: COLOURS[i % COLOURS.length],
    width: 2,
    paths: chart.is_joined[i] ? undefined : () => null,
    dash: i >= COLOURS.length ? [6, 4] : undefined,
    points: { show: chart.points[i + 1].filter((number) => number !== null).length < 40 },
    spanGaps: true,
    value: (_, number) => shown(chart)(number),
  }));
  const last = chart.labels.map((label, i) => {
    const known = chart.points[i + 1].filter((number) => number !== null);
    return known.length ? `${label}: ${shown(chart)(known[known.length - 1])}` : "";
  });
  const picture = document.createElement("div");
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", `${chart.title}; at the end ${last.filter(Boolean).join(", ")}`);
  box.append(picture);
  const plot = new uPlot(
    {
      width: Math.max(220, box.clientWidth - 22),
      height: 200,
      scales: {
        x: { time: false },
        y: { range: (it) => (it.chart.span ? it.chart.span : uPlot.rangeNum(...span(it.chart), 0.1, true)) },
      },
      axes: [
        { ...axis, ...(whole ? { incrs: WHOLE } : {}) },
        { ...axis, size: 56, values: (_, splits) => splits.map((number) => (chart.is_share ? `${Math.round(100 * number)} %` : short(number))) },
      ],
      series: [{ label: chart.across, value: (_, number) => short(number) }, ...series],
      hooks: { init: [(it) => (it.chart = chart)], draw: [drawIntervals] },
    },
    chart.points,
    picture,
  );
  atRest(plot);
  plot.over.addEventListener("mouseleave", () => atRest(plot));
  return { plot, box };
}

async function fill(place) {
  const answer = await fetch(place.dataset.source);
  if (!answer.ok) {
    place.textContent = `The numbers could not be read (${answer.status}).`;
    return;
  }
  const charts = await answer.json();
  const names = charts.map((chart) => chart.title + chart.labels.join()).join("|");
  if (place.dataset.names === names) {
    place.plots.forEach(({ plot }, i) => {
      plot.chart = charts[i];
      plot.setData(charts[i].points);
      atRest(plot);
    });
    return;
  }
  place.dataset.names = names;
  place.replaceChildren();
  const boxes = charts.map((chart) => boxOf(place, chart));
  place.plots = charts.map((chart, i) => draw(boxes[i], chart));
  if (!charts.length) place.textContent = "Nothing to draw yet.";
}

function follow(place) {
  const live = document.getElementById("live");
  const events = new EventSource(place.dataset.events);
  let waiting = false;
  events.onopen = () => (live.textContent = "live");
  events.onerror = () => (live.textContent = "not connected");
  events.addEventListener("grown", () => {
    if (waiting) return;
    waiting = true;
    setTimeout(async () => {
      waiting = false;
      await fill(place);
      await refreshTiles();
      live.textContent = `live · ${new Date().toLocaleTimeString()}`;
    }, 300);
  });
}

async function refreshTiles() {
  const answer = await fetch(location.href);
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of ["#tiles", "#begin", "#updates", "#state"]) {
    const [now, then] = [page.querySelector(part), document.querySelector(part)];
    if (now && then) then.replaceWith(document.adoptNode(now));
  }
}

function tokens(box) {
  const numbers = document.getElementById("numbers");
  const all = [...box.children];
  const turning = document.getElementById("turning");
  let here = -1;
  const show = (token) => {
    if (here >= 0) all[here].classList.remove("here");
    here = all.indexOf(token);
    token.classList.add("here");
    numbers.textContent = `${JSON.stringify(token.textContent)} · ${token.title}`;
  };
  box.addEventListener("mouseover", (event) => event.target.parentNode === box && show(event.target));
  box.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by || !all.length) return;
    event.preventDefault();
    const next = all[Math.min(all.length - 1, Math.max(0, here + by))];
    show(next);
    next.scrollIntoView({ block: "nearest" });
  });
  if (turning) show(turning);
  addEventListener("hashchange", () => location.hash === "#turning" && turning && show(turning));
}

for (const place of document.querySelectorAll(".charts")) {
  fill(place);
  if (place.dataset.events) follow(place);
}
for (const box of document.querySelectorAll(".tokens")) tokens(box);
addEventListener("resize", () => {
  for (const place of document.querySelectorAll(".charts"))
    for (const { plot, box } of place.plots || []) {
      plot.setSize({ width: Math.max(220, box.clientWidth - 22), height: 200 });
      atRest(plot);
    }
});
