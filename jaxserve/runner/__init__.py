"""The bridge: the only place that sees both the host plane and the device plane."""
