# Elixir accepts, Python speaks the protocol. From this folder, after `rebar3 compile`:
#     ERL_LIBS=../_build/default/lib elixir echo.exs 8080
defmodule Echo do
  def listen(port) do
    {:ok, _} = Application.ensure_all_started(:py_reactor)

    :ok =
      :py.exec("""
      import erlang.reactor as reactor
      from my_protocols import MyProtocol
      reactor.set_protocol_factory(MyProtocol)
      """)

    {:ok, listener} = :gen_tcp.listen(port, [:binary, active: false, reuseaddr: true, backlog: 1024])
    listener
  end

  def accept_loop(listener) do
    {:ok, client} = :gen_tcp.accept(listener)

    case :py_reactor_context.handoff(client, %{}) do
      :ok -> :ok
      {:error, reason} -> IO.warn("not served: #{inspect(reason)}")
    end

    accept_loop(listener)
  end
end

[port] = System.argv()
port |> String.to_integer() |> Echo.listen() |> Echo.accept_loop()
