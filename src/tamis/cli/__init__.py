"""The command line: one file per verb, which wires the library and holds no logic of its own."""
