"""What programs tell Prometheus: figures by name, how they are scraped, and files for Prometheus and Grafana.

`families` says what a metric is; `coordinator`, `gateway`, `bridge` and `watch` each turn the state of one program into
samples, as pure functions; `serving` is the door to prometheus_client; `files/` holds the dashboard and the rules.
"""
