"""An HTTP server for one trained model: its inputs, batching, and limits.

batching.py   concurrent requests as batches of a few compiled sizes
bodies.py     from the bytes of a request to digits, within limits
app.py        the addresses: /, /predict, /healthz
server.py     loads a model and serves it until it is stopped
"""
