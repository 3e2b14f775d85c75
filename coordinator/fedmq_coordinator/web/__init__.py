"""The dashboard: what a browser sees of a coordinator. Report and dashboard share `base.css`, `charts.js` and uPlot."""
