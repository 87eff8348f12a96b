defmodule Consumer do
  @moduledoc "Serves one echo over TCP; raises when not every byte came back."

  def main do
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
    {:ok, fd} = :inet.getfd(accepted)
    :ok = :py_reactor_context.handoff(fd, %{type: :tcp})
    message = :rand.bytes(100_000)
    :ok = :gen_tcp.send(client, message)
    {:ok, ^message} = :gen_tcp.recv(client, byte_size(message), 5_000)
  end
end
