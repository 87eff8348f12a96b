%% script/demo_server.erl PORT READY_FILE [status]: serves examples/echo.erl, the program of the README, as it stands there.
%% When it listens it writes the port into READY_FILE; with `status` one line tells what goes on until SIGTERM comes.
-module(demo_server).
-mode(compile).
-export([main/1]).

main([Port, ReadyFile | Rest]) ->
    ok = logger:set_primary_config(level, warning),
    {ok, echo, Code} = compile:file("examples/echo.erl", [binary, report]),
    {module, echo} = code:load_binary(echo, "echo.erl", Code),
    %% The node's folder is on sys.path: there my_protocols.py is found.
    ok = file:set_cwd("examples"),
    listen(list_to_integer(Port)),
    ActualPort = py_reactor:get_port(echo),
    io:format("~s~nserving examples/my_protocols.py on port ~b (Erlang accepts, Python answers)~n", [versions(), ActualPort]),
    ok = file:write_file(ReadyFile, integer_to_list(ActualPort)),
    serve(Rest =:= ["status"]).

listen(Port) ->
    case echo:start(Port) of
        {ok, _} ->
            ok;
        {error, Reason} when is_atom(Reason) ->
            io:format(standard_error, "port ~b: ~s~n", [Port, inet:format_error(Reason)]),
            halt(1)
    end.

versions() ->
    {ok, Version} = application:get_key(py_reactor, vsn),
    {ok, Python} = py:version(),
    io_lib:format("py_reactor ~s, Erlang/OTP ~s (erts ~s), Python ~s, ~s", [
        Version, erlang:system_info(otp_release), erlang:system_info(version), Python,
        erlang:system_info(system_architecture)
    ]).

%% The end comes from outside, as SIGTERM, which stops the node in good order.
serve(Status) ->
    timer:sleep(1000),
    %% On the way down there are no contexts any more.
    Contexts = py_reactor_pool:contexts(),
    Status andalso Contexts =/= [] andalso io:format("~s", [status_line(Contexts)]),
    serve(Status).

%% On a terminal each line takes the place of the one before, so it must fit into 80 columns.
status_line(Contexts) ->
    Sum = lists:foldl(fun add/2, #{}, [py_reactor_context:stats(C) || C <- Contexts]),
    [Open, Accepted, In, Out, Exceptions] =
        [maps:get(K, Sum, 0) || K <- [active, accepted, bytes_in, bytes_out, exceptions]],
    {UptimeMs, _} = erlang:statistics(wall_clock),
    {Start, End} = case os:getenv("DEMO_TERMINAL") of
        "1" -> {"\r", "\e[K"};
        _ -> {"", "\n"}
    end,
    io_lib:format("~sup ~b s, ~b open, ~b served, ~s in, ~s out, ~b exceptions~s", [
        Start, UptimeMs div 1000, Open, Accepted, bytes(In), bytes(Out), Exceptions, End
    ]).

add({error, no_context}, Sum) ->
    Sum;
add(Stats, Sum) ->
    Counters = maps:filter(fun(_, V) -> is_integer(V) end, Stats),
    maps:merge_with(fun(_, A, B) -> A + B end, Counters, Sum).

bytes(N) when N < 10000 -> io_lib:format("~b B", [N]);
bytes(N) when N < 10000000 -> io_lib:format("~.1f kB", [N / 1000]);
bytes(N) when N < 10000000000 -> io_lib:format("~.1f MB", [N / 1000000]);
bytes(N) -> io_lib:format("~.1f GB", [N / 1000000000]).
