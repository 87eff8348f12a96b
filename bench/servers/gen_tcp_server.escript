#!/usr/bin/env escript
%% -*- erlang -*-
%%% gen_tcp, a process per connection: `passive' or `once' (active once), with `echo' or `flow'.
%%% Prints `listening PORT'. README.md tells what the protocols do.
-mode(compile).

-define(OPTIONS, [
    binary,
    {active, false},
    {reuseaddr, true},
    {nodelay, true},
    {backlog, 1024},
    {ip, {127, 0, 0, 1}}
]).

main([Mode, Protocol]) when
    (Mode =:= "passive" orelse Mode =:= "once"), (Protocol =:= "echo" orelse Protocol =:= "flow")
->
    {ok, Listener} = gen_tcp:listen(0, ?OPTIONS),
    {ok, Port} = inet:port(Listener),
    settle(),
    io:format("listening ~b~n", [Port]),
    accept(Listener, list_to_atom(Mode), list_to_atom(Protocol));
main(_) ->
    io:format(standard_error, "usage: gen_tcp_server.escript passive|once echo|flow~n", []),
    halt(2).

%% The compiler of this script leaves garbage, megabytes that would be given back in the middle of a
%% measurement of memory and hide what grows meanwhile.
settle() ->
    lists:foreach(fun erlang:garbage_collect/1, processes()).

accept(Listener, Mode, Protocol) ->
    {ok, Socket} = gen_tcp:accept(Listener),
    Pid = spawn(fun() ->
        receive
            go -> serve(Protocol, Mode, Socket)
        end
    end),
    %% The peer may be gone already; the process then learns it from its first wait.
    _ = gen_tcp:controlling_process(Socket, Pid),
    Pid ! go,
    accept(Listener, Mode, Protocol).

serve(echo, Mode, Socket) -> echo(Mode, Socket);
serve(flow, Mode, Socket) -> flow(Mode, Socket).

echo(Mode, Socket) ->
    case next(Mode, Socket) of
        {ok, Data} ->
            case gen_tcp:send(Socket, Data) of
                ok -> echo(Mode, Socket);
                {error, _} -> gen_tcp:close(Socket)
            end;
        {error, _} ->
            gen_tcp:close(Socket)
    end.

flow(Mode, Socket) ->
    case next(Mode, Socket) of
        {ok, <<"D", _/binary>>} ->
            download(Socket, binary:copy(list_to_binary(lists:seq(0, 255)), 1024));
        {ok, Data} ->
            %% The end of the client's stream is not the end of ours.
            ok = inet:setopts(Socket, [{exit_on_close, false}]),
            upload(Mode, Socket, byte_size(Data));
        {error, _} ->
            gen_tcp:close(Socket)
    end.

download(Socket, Block) ->
    case gen_tcp:send(Socket, Block) of
        ok -> download(Socket, Block);
        {error, _} -> gen_tcp:close(Socket)
    end.

upload(Mode, Socket, Bytes) ->
    case next(Mode, Socket) of
        {ok, Data} ->
            upload(Mode, Socket, Bytes + byte_size(Data));
        {error, _} ->
            _ = gen_tcp:send(Socket, <<Bytes:64>>),
            gen_tcp:close(Socket)
    end.

next(passive, Socket) ->
    gen_tcp:recv(Socket, 0);
next(once, Socket) ->
    case inet:setopts(Socket, [{active, once}]) of
        ok ->
            receive
                {tcp, Socket, Data} -> {ok, Data};
                {tcp_closed, Socket} -> {error, closed};
                {tcp_error, Socket, Reason} -> {error, Reason}
            end;
        {error, _} = Error ->
            Error
    end.
