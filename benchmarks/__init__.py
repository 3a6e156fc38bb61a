"""What eventstream costs, beside its peers: `make bench`, or `python -m benchmarks --help`.

Reading order: `harness` (cases, processes, medians), `stage` (event loops, the gate that counts deliveries), `feeds`
(the peers), `loopback` (the other end of a connection), then a module for each section: `fanout`, `publishing`,
`memory`, `resume`, `snapshots`, `pipes`; `report` prints.
"""
