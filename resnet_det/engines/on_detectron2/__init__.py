"""The engine on Detectron2. It hides two warnings that torch prints about Detectron2's own code."""

import logging
import warnings

warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming release", UserWarning)
logging.getLogger("torch.fx._symbolic_trace").addFilter(
    lambda record: not record.getMessage().startswith("is_fx_tracing will return true")
)
