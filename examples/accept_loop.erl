%% The same as echo.erl with a gen_tcp accept loop, and what the acceptor says of the client. From this folder, after `rebar3 compile`:
%%     ERL_LIBS=../_build/default/lib escript accept_loop.erl 8080
-module(accept_loop).
-export([main/1, listen/1, accept_loop/1]).

main([Port]) ->
    accept_loop(listen(list_to_integer(Port))).

listen(Port) ->
    {ok, _} = application:ensure_all_started(py_reactor),
    ok = py:exec(<<"
        import erlang.reactor as reactor
        from my_protocols import MyProtocol
        reactor.set_protocol_factory(MyProtocol)
    ">>),
    {ok, ListenSock} = gen_tcp:listen(Port, [binary, {active, false}, {reuseaddr, true}]),
    ListenSock.

accept_loop(ListenSock) ->
    {ok, ClientSock} = gen_tcp:accept(ListenSock),
    {ok, {Addr, Port}} = inet:peername(ClientSock),
    {ok, Fd} = inet:getfd(ClientSock),
    py_reactor_context:handoff(Fd, #{addr => inet:ntoa(Addr), port => Port, type => tcp}),
    accept_loop(ListenSock).
