"""The network with its config, its pixels, its thresholds, its folder and its Hub repository."""
