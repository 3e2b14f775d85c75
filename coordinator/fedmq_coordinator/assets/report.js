// Draws the charts of the report from the data in the page. Every figure also stands in a table of the page.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("report-data").textContent);
  if (data.round.length === 0) return;
  document.documentElement.classList.add("scripted");

  const bytes = (count) => {
    if (count == null) return "";
    for (const unit of ["B", "kB", "MB", "GB"]) {
      if (count < 999.5) return (unit === "B" ? Math.round(count) : Number(count.toPrecision(3))) + " " + unit;
      count /= 1000;
    }
    return Number(count.toPrecision(3)) + " TB";
  };
  const last = data.round.length - 1;
  const decades = (u, splits) => splits.map((value) => (Math.abs(Math.log10(value) % 1) < 1e-9 ? value : null));
  const plain = (digits) => (value) => (value == null ? "" : value.toFixed(digits));
  const positive = (values) => values.map((value) => (value > 0 ? value : null));
  const style = () => {
    const computed = getComputedStyle(document.documentElement);
    return (name) => computed.getPropertyValue("--" + name).trim();
  };

  const line = (label, colour, show, extra) => ({ label, colour, show, dash: [], width: 2, ...extra });
  // More bars than this would be narrower than a pixel or two: lines then.
  const bars = (align) =>
    data.round.length > 120
      ? { points: { show: false } }
      : { paths: uPlot.paths.bars({ size: [0.42, 28], align }), fill: true, width: 0, points: { show: false } };
  const charts = {
    metric: {
      values: [data.metric, data.loss],
      series: [
        line(data.metric_name, "metric", plain(4), { scale: "metric" }),
        line("loss", "loss", plain(4), { scale: "loss", dash: [7, 4] }),
      ],
      scales: { metric: {}, loss: {} },
      axes: [
        { scale: "metric", label: data.metric_name + " (no unit)", colour: "metric" },
        { scale: "loss", label: "loss (no unit)", colour: "loss", side: 1, grid: { show: false } },
      ],
    },
    cumulative: {
      values: [data.cumulative_up, data.cumulative_down, data.cumulative_dense, data.raw].map(positive),
      series: [
        line("wire up", "up", bytes, { points: { show: last === 0 } }),
        line("wire down", "down", bytes, { dash: [10, 3], points: { show: last === 0 } }),
        line("dense float32, both ways", "dense", bytes, { dash: [7, 4], points: { show: last === 0 } }),
        line("raw signal, once", "raw", bytes, { dash: [2, 4], points: { show: last === 0 } }),
      ],
      scales: { y: { distr: 3 } },
      axes: [{ scale: "y", label: "bytes so far (logarithmic)", bytes: true, filter: decades }],
    },
    round: {
      values: [data.wire_up, data.wire_down],
      series: [
        line("wire up", "up", bytes, bars(-1)),
        line("wire down", "down", bytes, { dash: data.round.length > 120 ? [10, 3] : [], ...bars(1) }),
      ],
      scales: { y: { range: (u, low, high) => [0, (high || 1) * 1.08] } },
      axes: [{ scale: "y", label: "bytes of a round", bytes: true }],
    },
  };

  const drawn = new Map();

  function draw(name) {
    const place = document.getElementById("chart-" + name);
    const chart = charts[name];
    const ink = style();
    const hidden = drawn.has(name) ? drawn.get(name).series.map((series) => !series.show) : [];
    if (drawn.has(name)) drawn.get(name).destroy();
    const thin = (extra) => ({ stroke: ink("rule"), width: 1, ...extra });
    const axis = (extra) => ({
      stroke: ink("quiet"),
      grid: thin({}),
      ticks: thin({}),
      font: "12px system-ui, sans-serif",
      labelFont: "12px system-ui, sans-serif",
      labelSize: 18,
      ...extra,
    });
    // Without a cursor the legend shows the latest round that has a value, not empty fields.
    const known = chart.values[0].findLastIndex((value) => value != null);
    const latest = (plot) => {
      if (plot.cursor.idx == null) plot.setLegend({ idx: known < 0 ? last : known }, false);
    };
    const plot = new uPlot(
      {
        width: place.clientWidth,
        height: 270,
        padding: [10, chart.axes.length > 1 ? 0 : 14, 0, 0],
        hooks: { ready: [latest], setCursor: [latest] },
        cursor: { drag: { x: false, y: false } },
        scales: { x: { time: false, range: (u, low, high) => [low - 0.6, high + 0.6] }, ...chart.scales },
        axes: [
          axis({ label: "round", incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 10000], space: 44, size: 34 }),
          ...chart.axes.map((own) =>
            axis({
              scale: own.scale,
              label: own.label,
              side: own.side ?? 3,
              size: own.bytes ? 62 : 48,
              ...(own.grid ? { grid: own.grid } : {}),
              ...(own.colour ? { stroke: ink(own.colour) } : {}),
              ...(own.filter ? { filter: own.filter, grid: thin({ filter: own.filter }), ticks: thin({ filter: own.filter }) } : {}),
              ...(own.bytes ? { values: (u, splits) => splits.map(bytes) } : {}),
            }),
          ),
        ],
        series: [
          { label: "round", value: (u, value) => (value == null ? "" : String(value)) },
          ...chart.series.map((own, index) => ({
            label: own.label,
            scale: own.scale ?? "y",
            stroke: ink(own.colour),
            fill: own.fill ? ink(own.colour) : undefined,
            width: own.width,
            dash: own.dash,
            paths: own.paths,
            spanGaps: true,
            points: own.points ?? { show: data.round.length < 60, size: 5, fill: ink(own.colour) },
            value: (u, value) => own.show(value),
            show: !hidden[index + 1],
          })),
        ],
      },
      [data.round, ...chart.values],
      place,
    );
    drawn.set(name, plot);
    makeLegendReachable(plot);
  }

  // uPlot's legend listens to the mouse alone.
  function makeLegendReachable(plot) {
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

  // The arrow keys walk the cursor from round to round, and the legend shows its values.
  function walk(event, name) {
    if (event.target !== event.currentTarget) return;
    const plot = drawn.get(name);
    const at = plot.cursor.idx;
    const steps = { ArrowLeft: (at ?? last + 1) - 1, ArrowRight: (at ?? -1) + 1, Home: 0, End: last };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const index = Math.max(0, Math.min(last, steps[event.key]));
    plot.setCursor({ left: plot.valToPos(data.round[index], "x"), top: plot.over.clientHeight / 2 });
  }

  for (const name of Object.keys(charts)) {
    const place = document.getElementById("chart-" + name);
    draw(name);
    place.addEventListener("keydown", (event) => walk(event, name));
    new ResizeObserver(() => {
      const plot = drawn.get(name);
      if (Math.abs(plot.width - place.clientWidth) > 1) plot.setSize({ width: place.clientWidth, height: 270 });
    }).observe(place);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => Object.keys(charts).forEach(draw));
})();
