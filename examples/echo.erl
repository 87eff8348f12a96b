%% Erlang accepts, Python speaks the protocol. From this folder, after `rebar3 compile`:
%%     ERL_LIBS=../_build/default/lib escript echo.erl 8080
-module(echo).
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
    Options = [binary, {active, false}, {reuseaddr, true}, {backlog, 1024}],
    {ok, ListenSock} = gen_tcp:listen(Port, Options),
    ListenSock.

accept_loop(ListenSock) ->
    {ok, ClientSock} = gen_tcp:accept(ListenSock),
    case py_reactor_context:handoff(ClientSock, #{}) of
        ok -> ok;
        {error, Reason} -> logger:warning("not served: ~tp", [Reason])
    end,
    accept_loop(ListenSock).
