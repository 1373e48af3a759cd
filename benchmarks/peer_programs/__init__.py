"""Programs that do the work of the benchmarks with other libraries, each in an environment of its own.

They import nothing of the product. `benchmarks.peers` starts them and tells them what to do.
"""
