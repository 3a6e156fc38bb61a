"""What eventstream costs, beside its peers: `make bench`, or `python -m benchmarks --help`.

Reading order: `harness` (cases, processes, medians), `stage` (event loops, the gate that counts deliveries), `feeds`
(the peers), then a module for each section: `fanout`, `publishing`, `memory`, `resume`, `snapshots`; `report` prints.
"""
