#!/usr/bin/env escript
%% -*- erlang -*-
%%% Echo with gen_tcp in passive mode, a process per connection. Prints `listening PORT`.
-mode(compile).

-define(OPTIONS, [
    binary,
    {active, false},
    {reuseaddr, true},
    {nodelay, true},
    {backlog, 1024},
    {ip, {127, 0, 0, 1}}
]).

main([]) ->
    {ok, Listener} = gen_tcp:listen(0, ?OPTIONS),
    {ok, Port} = inet:port(Listener),
    settle(),
    io:format("listening ~b~n", [Port]),
    accept(Listener).

%% The compiler of this script leaves garbage, megabytes that would be given back in the middle of a
%% measurement of memory and hide what grows meanwhile.
settle() ->
    lists:foreach(fun erlang:garbage_collect/1, processes()).

accept(Listener) ->
    {ok, Socket} = gen_tcp:accept(Listener),
    Pid = spawn(fun() ->
        receive
            go -> echo(Socket)
        end
    end),
    %% The peer may be gone already; the process then learns it from recv.
    _ = gen_tcp:controlling_process(Socket, Pid),
    Pid ! go,
    accept(Listener).

echo(Socket) ->
    case gen_tcp:recv(Socket, 0) of
        {ok, Data} -> send(Socket, Data);
        {error, _} -> gen_tcp:close(Socket)
    end.

send(Socket, Data) ->
    case gen_tcp:send(Socket, Data) of
        ok -> echo(Socket);
        {error, _} -> gen_tcp:close(Socket)
    end.
