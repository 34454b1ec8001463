"""How long steps and answers take: rooflines of devices, the alpha-beta model of links, and engines' own pace. Pure."""
