"""
Compare the speed and size of two trees of this project: ``python -m benchmarks compare OLD NEW``.

``worker``, ``shapes``, ``async_shapes``, ``metered_shapes`` and ``probes`` run inside a tree, with the ``enforcement``
of that tree. The other modules run in the parent process and start them.
"""
