"""Language models under control: the embedded one, stepping layer by layer, exit probes, traces, live generation."""
