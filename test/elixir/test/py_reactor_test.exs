defmodule PyReactorTest do
  use ExUnit.Case

  test "eval answers an Elixir value" do
    assert {:ok, 42} = :py.eval("6 * 7")
    assert {:ok, "naïve"} = :py.eval("'na' + chr(0xef) + 've'")
  end

  test "call hands over arguments and takes the result back" do
    assert {:ok, 5} = :py.call(:math, :gcd, [10, 15])
    assert {:ok, %{"a" => [1, 2.5, true, :none]}} = :py.call("json", "loads", [~s({"a": [1, 2.5, true, null]})])
  end

  test "an indented heredoc runs, and what it defines is seen by call" do
    :ok =
      :py.exec("""
        def shout(word):
            return word.upper() + "!"
      """)

    assert {:ok, "HELLO!"} = :py.call(:__main__, :shout, ["hello"])
  end

  test "a Python error is an error tuple with class and message" do
    assert {:error, {class, message, _traceback}} = :py.eval("1 / 0")
    assert to_string(class) =~ "ZeroDivisionError"
    assert message =~ "division by zero"
  end

  test "Python calls functions of Elixir" do
    :ok = :py.register_function(:add, fn a, b -> a + b end)
    :ok = :py.register_function("shout", &String.upcase/1)

    :ok =
      :py.exec("""
      import erlang
      from erlang import add, shout

      assert add(1, 2) == 3 and shout("hey") == "HEY"
      try:
          add(1, None)
      except erlang.ErlangError as e:
          assert (e.kind, e.reason) == ("error", "badarith")
      else:
          raise AssertionError("None was added")
      """)

    assert [:ok, :ok] = Enum.map([:add, :shout], &:py.unregister_function/1)
  end

  test "a Python protocol serves a socket that Elixir accepted" do
    :ok =
      :py.exec("""
      import erlang.reactor as reactor

      class Echo(reactor.Protocol):
          def data_received(self, data):
              self.write_buffer.extend(data)
              return "write_pending"

      reactor.set_protocol_factory(Echo)
      """)

    {:ok, listener} = :gen_tcp.listen(0, [:binary, active: false, ip: {127, 0, 0, 1}])
    {:ok, port} = :inet.port(listener)
    {:ok, client} = :gen_tcp.connect(~c"127.0.0.1", port, [:binary, active: false])
    {:ok, accepted} = :gen_tcp.accept(listener)
    :ok = :py_reactor_context.handoff(accepted, %{type: :tcp})

    message = :crypto.strong_rand_bytes(100_000)
    :ok = :gen_tcp.send(client, message)
    assert {:ok, ^message} = :gen_tcp.recv(client, byte_size(message), 5_000)
    :ok = :gen_tcp.shutdown(client, :write)
    assert {:error, :closed} = :gen_tcp.recv(client, 0, 5_000)
  end
end
