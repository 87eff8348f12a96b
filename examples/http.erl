%% HTTP/1.0 in Python behind an Erlang listener. From this folder, after `rebar3 compile`:
%%     ERL_LIBS=../_build/default/lib escript http.erl 8080
%%     curl http://localhost:8080/some/path
-module(http).
-export([main/1]).

main([Port]) ->
    {ok, _} = application:ensure_all_started(py_reactor),
    ok = py:exec(<<"
        import erlang.reactor as reactor
        from simple_http import SimpleHTTP
        reactor.set_protocol_factory(SimpleHTTP)
    ">>),
    Options = [binary, {active, false}, {reuseaddr, true}, {backlog, 1024}],
    {ok, ListenSock} = gen_tcp:listen(list_to_integer(Port), Options),
    accept_loop(ListenSock).

accept_loop(ListenSock) ->
    {ok, ClientSock} = gen_tcp:accept(ListenSock),
    _ = py_reactor_context:handoff(ClientSock, #{type => tcp}),
    accept_loop(ListenSock).
