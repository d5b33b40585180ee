"""Types that every plane shares: config, requests, sampling parameters, outputs, errors."""
