#!/usr/bin/env escript
%% -*- erlang -*-
%%% Echo with py_reactor: Erlang accepts, a Python protocol serves. The argument names the protocol:
%%% `letter` (echo_letter.py) or `inherited` (echo_inherited.py). Prints `listening PORT`.
-mode(compile).

-define(OPTIONS, [
    binary,
    {active, false},
    {reuseaddr, true},
    {backlog, 1024},
    {ip, {127, 0, 0, 1}}
]).

main([Protocol]) when Protocol =:= "letter"; Protocol =:= "inherited" ->
    Here = filename:dirname(filename:absname(escript:script_name())),
    add_code_path(filename:join([Here, "..", "..", "_build", "default", "lib"])),
    {ok, _} = application:ensure_all_started(py_reactor),
    ok = py:add_path(unicode:characters_to_binary(Here)),
    ok = py:exec(
        iolist_to_binary([
            "import erlang.reactor as reactor\n",
            ["from echo_", Protocol, " import Echo\n"],
            "reactor.set_protocol_factory(Echo)\n"
        ])
    ),
    {ok, Listener} = gen_tcp:listen(0, ?OPTIONS),
    {ok, Port} = inet:port(Listener),
    settle(),
    io:format("listening ~b~n", [Port]),
    accept(Listener);
main(_) ->
    stop("usage: reactor_echo.escript letter | inherited").

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
