// Charts, live pages, and the numbers of a token. Everything else works without this file.
"use strict";

const COLOURS = ["#2563eb", "#ea7317", "#2a9d57", "#8b5cf6", "#0d9488", "#d64545", "#9aa5b1"];
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

function draw(box, chart) {
  const axis = { stroke: css("--muted"), grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line") } };
  const series = chart.labels.map((label, i) => ({
    label,
    stroke: COLOURS[i % COLOURS.length],
    width: 2,
    dash: i >= COLOURS.length ? [6, 4] : undefined,
    points: { show: chart.points[0].length < 40 },
    spanGaps: true,
  }));
  const last = chart.labels.map((label, i) => {
    const known = chart.points[i + 1].filter((number) => number !== null);
    return known.length ? `${label}: ${known[known.length - 1].toPrecision(4)}` : "";
  });
  const picture = document.createElement("div");
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", `${chart.title}; at the end ${last.filter(Boolean).join(", ")}`);
  box.append(picture);
  const plot = new uPlot(
    {
      width: Math.max(220, box.clientWidth - 22),
      height: 210,
      scales: { x: { time: false } },
      axes: [axis, { ...axis, size: 60 }],
      series: [{ label: "at" }, ...series],
    },
    chart.points,
    picture,
  );
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
    place.plots.forEach(({ plot }, i) => plot.setData(charts[i].points));
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
  for (const part of [".tiles", ".columns"]) {
    const [now, then] = [page.querySelector(part), document.querySelector(part)];
    if (now && then) then.replaceWith(document.adoptNode(now));
  }
}

function tokens(box) {
  const numbers = document.getElementById("numbers");
  const all = [...box.children];
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
}

for (const place of document.querySelectorAll(".charts")) {
  fill(place);
  if (place.dataset.events) follow(place);
}
for (const box of document.querySelectorAll(".tokens")) tokens(box);
addEventListener("resize", () => {
  for (const place of document.querySelectorAll(".charts"))
    for (const { plot, box } of place.plots || []) plot.setSize({ width: Math.max(220, box.clientWidth - 22), height: 210 });
});
