"""How XLA is told to compile soon rather than well: most of the suite's time is compiling."""

import importlib.metadata

FLAGS = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones end at the unknown flag
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
