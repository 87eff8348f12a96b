#!/usr/bin/env escript
%% -*- erlang -*-
%%% Echo with py_reactor: Erlang accepts, a Python protocol of examples/ serves. The argument names it:
%%% `letter` (echo.py) or `inherited` (my_protocols.py). Prints `listening PORT`.
-mode(compile).

-define(OPTIONS, [
    binary,
    {active, false},
    {reuseaddr, true},
    {backlog, 1024},
    {ip, {127, 0, 0, 1}}
]).

main([Protocol]) ->
    Import = import(Protocol),
    Root = filename:join([filename:dirname(filename:absname(escript:script_name())), "..", ".."]),
    add_code_path(filename:join([Root, "_build", "default", "lib"])),
    {ok, _} = application:ensure_all_started(py_reactor),
    ok = py:add_path(filename:join(Root, "examples")),
    ok = py:exec([Import, "\nimport erlang.reactor as reactor\nreactor.set_protocol_factory(Echo)\n"]),
    {ok, Listener} = gen_tcp:listen(0, ?OPTIONS),
    {ok, Port} = inet:port(Listener),
    settle(),
    io:format("listening ~b~n", [Port]),
    accept(Listener);
main(_) ->
    usage().

import("letter") -> "from echo import EchoProtocol as Echo";
import("inherited") -> "from my_protocols import MyProtocol as Echo";
import(_) -> usage().

usage() ->
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
