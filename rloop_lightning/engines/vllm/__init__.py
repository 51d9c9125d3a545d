"""vLLM as a rollout engine, in processes of its own.

The trainer's side imports nothing of vLLM: engine.py, server.py, client.py, protocol.py, transfer.py, truth.py. The
other side runs in vLLM's environment and imports nothing of the trainer: serve.py (`rloop-serve`), plugin.py, shm.py.
"""
