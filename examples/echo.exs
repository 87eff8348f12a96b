# The echo server of the README. From this folder, after `rebar3 compile`:
#     ERL_LIBS=../_build/default/lib elixir echo.exs 8080
defmodule Echo do
  def start(port) do
    {:ok, _} = Application.ensure_all_started(:py_reactor)

    :py_reactor.start_listener(:echo, %{
      port: port,
      protocol: {:my_protocols, :MyProtocol},
      max_connections: 10_000,
      idle_timeout: 60_000
    })
  end
end

[port] = System.argv()
{:ok, _} = port |> String.to_integer() |> Echo.start()
Process.sleep(:infinity)
