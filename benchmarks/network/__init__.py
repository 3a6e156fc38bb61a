"""Buses of other processes, side by side: what the section `remote` needs.

`peer` says what every bus has to do, one module for each does it; `far` is the second process, which serves and
publishes; the process that measures holds the clients.
"""
