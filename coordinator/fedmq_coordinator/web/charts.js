// Charts on uPlot, which must be loaded before. Works as a file of its own and inline in a static page; no module, so
// that both are the same text. Colours come from CSS variables (base.css), and follow the theme as it changes.
//
//   const chart = fedmqCharts.draw(element, {
//     title, unit, x: [1, 2, …],
//     series: [{ label, values: [0.1, null, …], kind: "line" }],
//   });
//   chart.update({ x, series });   chart.destroy();
//
// title     for who hears the page: the element's label
// unit      of the values: "bytes" is shown in kB, MB, …; "" has none; anything else stands behind each number
// x         numbers, rising; xLabel names them ("round"); time: true takes them as unix seconds
// log       a logarithmic axis; what is not above 0 is left out
// from      "zero": the axis begins at 0
// height    pixels, 270
// series    label; values, null where none is known; kind "line", "dashed", "dotted", "step" or "bars"; colour, a
//           variable of base.css without its dashes ("up"); axis "right"; unit and digits of its own; hidden: true
(() => {
  "use strict";
  const COLOURS = ["up", "down", "metric", "raw", "loss", "dense"];
  const DASHES = { dashed: [7, 4], dotted: [2, 4] };
  const MOST_BARS = 120; // more would be narrower than a pixel or two: lines then
  const MOST_POINTS = 60;
  const SMALL_FONT = "12px system-ui, sans-serif";
  const charts = new Set();
  // For uPlot, from the coarsest: seconds between two marks, what stands there, and what is added at a new year or day.
  const TIMES = [
    [86400 * 365, "{YYYY}", null, null],
    [86400 * 28, "{MMM}", "\n{YYYY}", null],
    [86400, "{D} {MMM}", "\n{YYYY}", null],
    [60, "{HH}:{mm}", "\n{D} {MMM} {YYYY}", "\n{D} {MMM}"],
    [1, "{HH}:{mm}:{ss}", "\n{D} {MMM} {YYYY}", "\n{D} {MMM}"],
  ].map(([length, text, year, day]) => [length, text, year, null, day, null, null, null, 1]);

  function bytes(count) {
    if (count == null) return "";
    for (const unit of ["B", "kB", "MB", "GB"]) {
      if (Math.abs(count) < 999.5) return (unit === "B" ? Math.round(count) : Number(count.toPrecision(3))) + " " + unit;
      count /= 1000;
    }
    return Number(count.toPrecision(3)) + " TB";
  }

  function figure(unit, digits) {
    if (unit === "bytes") return bytes;
    const behind = unit ? "\u00a0" + unit : "";
    return (value) => (value == null ? "" : number(value, digits) + behind);
  }

  function number(value, digits) {
    if (digits != null) return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
    return value.toLocaleString("en", { maximumSignificantDigits: 4 });
  }

  function ink(name) {
    return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  }

  class Chart {
    constructor(place, wanted) {
      this.place = place;
      this.wanted = wanted;
      this.plot = null;
      this.walk = (event) => this.#walk(event);
      place.classList.add("chart");
      place.tabIndex = 0;
      place.setAttribute("role", "group");
      place.setAttribute("aria-label", wanted.title + ": chart. The arrow keys walk from value to value.");
      place.addEventListener("keydown", this.walk);
      this.sizes = new ResizeObserver(() => this.#fit());
      this.#draw();
      this.sizes.observe(place);
      charts.add(this);
    }

    // New values of the same series keep what is hidden and where the cursor stands; other series draw anew.
    update(changes) {
      const kind = () => [this.wanted.x.length > MOST_BARS, ...this.wanted.series.map((one) => one.label)].join("\n");
      const before = kind();
      this.wanted = { ...this.wanted, ...changes };
      if (kind() === before && this.plot) this.plot.setData(this.#data());
      else this.redraw();
    }

    redraw() {
      const hidden = new Map((this.plot?.series ?? []).map((series) => [series.label, !series.show]));
      this.plot?.destroy();
      this.#draw(hidden);
    }

    destroy() {
      charts.delete(this);
      this.sizes.disconnect();
      this.place.removeEventListener("keydown", this.walk);
      this.plot?.destroy();
      this.plot = null;
    }

    #data() {
      const { x, series, log } = this.wanted;
      const shown = (values) => (log ? values.map((value) => (value > 0 ? value : null)) : values);
      return [x, ...series.map((one) => shown(one.values))];
    }

    #last() {
      return this.wanted.x.length - 1;
    }

    #draw(hidden = new Map()) {
      const { wanted, place } = this;
      const right = wanted.series.some((one) => one.axis === "right");
      const rule = (extra) => ({ stroke: ink("rule"), width: 1, ...extra });
      const axis = (extra) => ({
        stroke: ink("quiet"),
        grid: rule(),
        ticks: rule(),
        font: SMALL_FONT,
        labelFont: SMALL_FONT,
        labelSize: 18,
        ...extra,
      });
      const options = {
        width: Math.max(80, place.clientWidth),
        height: wanted.height ?? 270,
        padding: [10, right ? 0 : 14, 0, 0],
        hooks: { ready: [(plot) => this.#latest(plot)], setCursor: [(plot) => this.#latest(plot)], setData: [(plot) => this.#latest(plot)] },
        cursor: { drag: { x: false, y: false } },
        scales: { x: this.#across(), left: this.#up("left"), ...(right ? { right: this.#up("right") } : {}) },
        axes: [
          axis(wanted.time
            ? { space: 64, size: 44, values: TIMES }
            : { label: wanted.xLabel ?? "round", incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 50000, 100000], space: 44, size: 34 }),
          axis(this.#side("left")),
          ...(right ? [axis({ ...this.#side("right"), side: 1, grid: { show: false } })] : []),
        ],
        series: [
          { label: wanted.time ? "time" : wanted.xLabel ?? "round", value: (plot, value) => this.#when(value) },
          ...wanted.series.map((one, index) => this.#series(one, index, hidden)),
        ],
      };
      this.plot = new uPlot(options, this.#data(), place);
      this.#legend();
    }

    #when(value) {
      if (value == null) return "";
      if (!this.wanted.time) return String(value);
      return new Date(value * 1000).toLocaleString("en-GB", { dateStyle: "short", timeStyle: "medium" });
    }

    #across() {
      if (this.wanted.time) return { time: true };
      return { time: false, range: (plot, low, high) => [(low ?? 0) - 0.6, (high ?? 1) + 0.6] };
    }

    #up(side) {
      const { log, from } = this.wanted;
      if (log && side === "left") return { distr: 3 };
      if (from === "zero" || this.wanted.series.some((one) => one.kind === "bars" && (one.axis ?? "left") === side)) {
        return { range: (plot, low, high) => [0, (high || 1) * 1.08] };
      }
      return {};
    }

    #side(side) {
      const { log, unit, series } = this.wanted;
      const of = series.filter((one) => (one.axis ?? "left") === side);
      const own = of[0]?.unit ?? (side === "left" ? unit : "");
      const label = own === "bytes" ? "bytes" : of.length === 1 ? of[0].label + (own ? ` (${own})` : "") : own || "";
      const decades = (plot, splits) => splits.map((value) => (Math.abs(Math.log10(value) % 1) < 1e-9 ? value : null));
      const logarithmic = log && side === "left";
      return {
        scale: side,
        label: logarithmic ? `${label} (logarithmic)` : label,
        size: own === "bytes" ? 62 : 52,
        ...(of.length === 1 && series.length > 1 ? { stroke: this.#colour(of[0], series.indexOf(of[0])) } : {}),
        ...(own === "bytes" ? { values: (plot, splits) => splits.map(bytes) } : {}),
        ...(logarithmic
          ? { filter: decades, grid: { stroke: ink("rule"), width: 1, filter: decades }, ticks: { stroke: ink("rule"), width: 1, filter: decades } }
          : {}),
      };
    }

    #colour(one, index) {
      return ink(one.colour ?? COLOURS[index % COLOURS.length]);
    }

    #series(one, index, hidden) {
      const colour = this.#colour(one, index);
      const bars = one.kind === "bars" && this.wanted.x.length <= MOST_BARS;
      const among = this.wanted.series.filter((other) => other.kind === "bars");
      const align = among.length === 2 ? (among.indexOf(one) === 0 ? -1 : 1) : 0;
      const show = figure(one.unit ?? this.wanted.unit, one.digits);
      return {
        label: one.label,
        scale: one.axis === "right" ? "right" : "left",
        stroke: colour,
        fill: bars ? colour : undefined,
        width: bars ? 0 : 2,
        dash: DASHES[one.kind],
        paths: bars
          ? uPlot.paths.bars({ size: [among.length === 2 ? 0.42 : 0.7, 28], align })
          : one.kind === "step" ? uPlot.paths.stepped({ align: 1 }) : undefined,
        spanGaps: true,
        points: bars
          ? { show: false }
          : { show: (plot) => plot.data[0].length < MOST_POINTS && (one.kind === undefined || one.kind === "line" || plot.data[0].length === 1), size: 5, fill: colour },
        value: (plot, value) => show(value),
        show: hidden.has(one.label) ? !hidden.get(one.label) : !one.hidden,
      };
    }

    // Without a cursor the legend shows the latest value that is known, not empty fields.
    #latest(plot) {
      if (plot.cursor.idx != null) return;
      const first = this.wanted.series[0]?.values ?? [];
      const known = first.findLastIndex((value) => value != null);
      plot.setLegend({ idx: known < 0 ? this.#last() : known }, false);
    }

    // uPlot's legend listens to the mouse alone.
    #legend() {
      const plot = this.plot;
      plot.root.querySelectorAll(".u-legend .u-series").forEach((row, index) => {
        if (index === 0) return;
        const head = row.querySelector("th");
        const state = () => head.setAttribute("aria-pressed", String(plot.series[index].show));
        head.tabIndex = 0;
        head.setAttribute("role", "button");
        head.title = "show or hide";
        head.addEventListener("click", () => setTimeout(state));
        head.addEventListener("keydown", (event) => {
          if (event.key !== "Enter" && event.key !== " ") return;
          event.preventDefault();
          plot.setSeries(index, { show: !plot.series[index].show });
          state();
        });
        state();
      });
    }

    // The arrow keys walk the cursor from value to value, and the legend shows them.
    #walk(event) {
      if (event.target !== event.currentTarget || !this.plot) return;
      const last = this.#last();
      const at = this.plot.cursor.idx;
      const steps = { ArrowLeft: (at ?? last + 1) - 1, ArrowRight: (at ?? -1) + 1, Home: 0, End: last };
      if (!(event.key in steps) || last < 0) return;
      event.preventDefault();
      const index = Math.max(0, Math.min(last, steps[event.key]));
      this.plot.setCursor({ left: this.plot.valToPos(this.wanted.x[index], "x"), top: this.plot.over.clientHeight / 2 });
    }

    #fit() {
      const width = Math.max(80, this.place.clientWidth);
      if (this.plot && Math.abs(this.plot.width - width) > 1) this.plot.setSize({ width, height: this.wanted.height ?? 270 });
    }
  }

  const redraw = () => charts.forEach((chart) => chart.redraw());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  new MutationObserver(redraw).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });

  window.fedmqCharts = { draw: (element, wanted) => new Chart(element, wanted), bytes };
})();
