"""A server for one trained model: what it takes over HTTP, how it batches, what it refuses.

batching.py   concurrent requests as batches of a few compiled sizes
bodies.py     from the bytes of a request to digits, within limits
app.py        the addresses: /, /predict, /healthz
server.py     from a model to a process that serves it until it is told to stop
"""
