#!/usr/bin/env escript
%% -*- erlang -*-
%%% py_reactor: a listener of its own (`listener'), or sockets that gen_tcp has accepted (`handoff').
%%% The second argument names the Python protocol, as reactor_protocols.py has it, a third one the number
%%% of contexts, which is 1 without. Prints `listening PORT'.
-mode(compile).

-define(OPTIONS, [
    binary,
    {active, false},
    {reuseaddr, true},
    {backlog, 1024},
    {ip, {127, 0, 0, 1}}
]).

main([How, Protocol]) ->
    main([How, Protocol, "1"]);
main([How, Protocol, Contexts]) when How =:= "listener"; How =:= "handoff" ->
    Root = filename:join([filename:dirname(filename:absname(escript:script_name())), "..", ".."]),
    add_code_path(filename:join([Root, "_build", "default", "lib"])),
    ok = application:load(py_reactor),
    ok = application:set_env(py_reactor, contexts, list_to_integer(Contexts)),
    {ok, _} = application:ensure_all_started(py_reactor),
    ok = py:add_path(filename:join(Root, "examples")),
    ok = py:add_path(filename:join([Root, "bench", "servers"])),
    ok = py:exec([
        "import reactor_protocols\nreactor_protocols.Wanted = reactor_protocols.named('", Protocol, "')\n"
    ]),
    serve(How);
main(_) ->
    stop("usage: reactor_server.escript listener|handoff inherited|letter|flow|http|h11 [CONTEXTS]").

serve("listener") ->
    {ok, _} = py_reactor:start_listener(bench, #{
        ip => {127, 0, 0, 1}, port => 0, backlog => 1024, protocol => {reactor_protocols, 'Wanted'}
    }),
    settle(),
    io:format("listening ~b~n", [py_reactor:get_port(bench)]),
    receive after infinity -> ok end;
serve("handoff") ->
    ok = py:exec("import erlang.reactor\nerlang.reactor.set_protocol_factory(reactor_protocols.Wanted)\n"),
    {ok, Listener} = gen_tcp:listen(0, ?OPTIONS),
    {ok, Port} = inet:port(Listener),
    settle(),
    io:format("listening ~b~n", [Port]),
    accept(Listener).

add_code_path(Lib) ->
    case filelib:wildcard(filename:join([Lib, "*", "ebin"])) of
        [] -> stop("py_reactor is not built: run rebar3 compile");
        Paths -> ok = code:add_pathsa(Paths)
    end.

%% The compiler of this script leaves garbage, megabytes that would be given back in the middle of a
%% measurement of memory and hide what grows meanwhile.
settle() ->
    lists:foreach(fun erlang:garbage_collect/1, processes()).

accept(Listener) ->
    {ok, Socket} = gen_tcp:accept(Listener),
    case inet:peername(Socket) of
        {ok, {Addr, Port}} -> handoff(Socket, #{addr => inet:ntoa(Addr), port => Port, type => tcp});
        %% Reset before it was accepted.
        {error, _} -> gen_tcp:close(Socket)
    end,
    accept(Listener).

%% A refused connection is closed by the handoff; the load client then says so.
handoff(Socket, Info) ->
    {ok, Fd} = inet:getfd(Socket),
    case py_reactor_context:handoff(Fd, Info) of
        ok -> ok;
        {error, Reason} -> io:format(standard_error, "handoff: ~0p~n", [Reason])
    end.

stop(Message) ->
    io:format(standard_error, "~ts~n", [Message]),
    halt(2).
