%%% Serves one echo over TCP and halts: 0 when every byte came back.
-module(consumer).
-export([main/0]).

main() ->
    {ok, _} = application:ensure_all_started(consumer),
    ok = py:exec(<<"
        import erlang.reactor as reactor

        class Echo(reactor.Protocol):
            def data_received(self, data):
                self.write_buffer.extend(data)
                return 'write_pending'

        reactor.set_protocol_factory(Echo)
    ">>),
    {ok, Listener} = gen_tcp:listen(0, [binary, {active, false}, {ip, {127, 0, 0, 1}}]),
    {ok, Port} = inet:port(Listener),
    {ok, Client} = gen_tcp:connect("127.0.0.1", Port, [binary, {active, false}]),
    {ok, Accepted} = gen_tcp:accept(Listener),
    {ok, Fd} = inet:getfd(Accepted),
    ok = py_reactor_context:handoff(Fd, #{type => tcp}),
    Message = rand:bytes(100000),
    ok = gen_tcp:send(Client, Message),
    {ok, Message} = gen_tcp:recv(Client, byte_size(Message), 5000),
    halt(0).
