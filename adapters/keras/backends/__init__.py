"""One package for each backend of Keras, with the modules that `adapters.keras.adapter` imports by name.

`device` sets up the process and reports on it; `loops` lists the executions and builds the programs.
"""
