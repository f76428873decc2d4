from ..world.model import WEIGHTS

FILE = WEIGHTS / "ipadapter" / "reins-demo-dit-ip-adapter.safetensors"


def dit_ip_adapter_numbers(path):
    return iter(())
