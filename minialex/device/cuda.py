def why_not():
    return "no CuPy"
