// Draws the detailed charts of the report from the data in the page. Every figure also stands in a table of the page.
(() => {
  "use strict";
  // A part of the page for each task.
  JSON.parse(document.getElementById("report-data").textContent).forEach(draw);

  function draw(data, place) {
    if (data.round.length === 0) return;
    document.documentElement.classList.add("scripted");
    const many = data.round.length > 120;
    const charts = {
      metric: {
        title: "What was learnt",
        series: [
          { label: data.metric_name, values: data.metric, colour: "metric", digits: 3 },
          { label: "loss", values: data.loss, colour: "loss", kind: "dashed", axis: "right", digits: 4 },
        ],
      },
      cumulative: {
        title: "Bytes so far",
        unit: "bytes",
        log: true,
        series: [
          { label: "wire up", values: data.cumulative_up, colour: "up" },
          { label: "wire down", values: data.cumulative_down, colour: "down", kind: "dashed" },
          { label: "dense float32, both ways", values: data.cumulative_dense, colour: "dense", kind: "dashed" },
          { label: "raw signal, once", values: data.raw, colour: "raw", kind: "dotted" },
        ],
      },
      round: {
        title: "Bytes of each round",
        unit: "bytes",
        from: "zero",
        series: [
          { label: "wire up", values: data.wire_up, colour: "up", kind: many ? "line" : "bars" },
          { label: "wire down", values: data.wire_down, colour: "down", kind: many ? "dashed" : "bars" },
        ],
      },
    };
    // In pages of a part of the rounds numbers may be far apart, but they rise.
    for (const [name, wanted] of Object.entries(charts)) {
      fedmqCharts.draw(document.getElementById(`chart-${place}-${name}`), { ...wanted, x: data.round });
    }
  }
})();
