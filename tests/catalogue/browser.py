"""Headless Chromium, where it is installed."""

import shutil


def chromium(profile):
    """A driver of Chromium with that folder as its profile, or None."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        return None
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    switches = "headless no-sandbox disable-gpu no-first-run disable-quic disable-sync"
    switches += " disable-background-networking disable-component-update"
    for switch in (*switches.split(), f"user-data-dir={profile}"):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
