{:ok, _} = Application.ensure_all_started(:py_reactor)
ExUnit.start()
