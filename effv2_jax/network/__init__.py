"""The network as data (`architecture`) and as Linen modules (`model`, `layers`)."""
