"""How the plugin is set up: variables of the environment that vLLM runs in."""

ADDRESS_VARIABLE = "ENTROGATE_ENGINE_ADDRESS"
SECRET_VARIABLE = "ENTROGATE_ENGINE_SECRET"
OFF = "off"  # as the address: no capture, no gate
